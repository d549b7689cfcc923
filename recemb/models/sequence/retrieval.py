"""Retrieval: the K behaviours most like the target, and what they sum up to.

    h = sum over S of  softmax(s)_i e_i        S = the K greatest of the scores s of `dot_scores`

On CUDA this is one op, `recemb.kernels.search_attention`: it reads the attention rows of all
behaviours and the representation rows of the K that it finds, and writes neither. Elsewhere it is
made of PyTorch's operations. Both select the same behaviours, unless scores are equal up to
rounding.

Shapes: `B` examples, `L` places in a history, `K` retrieved, `D` width of all parts side by side,
`R` rows of a table.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.kernels.search_attention import SearchPart, search_attention
from recemb.models.sequence.attention import (
    dot_scores,
    masked_softmax,
    products,
    score_groups,
    weighted_sums,
)
from recemb.models.sequence.inputs import Padding, SequenceInputs, context_of, ids_of
from recemb.models.sequence.part import Part
from recemb.models.sequence.search import top_k, top_places
from recemb.tables.gather import gather_rows
from recemb.tables.sharded import ShardedTables, planned_parts
from recemb.tables.tables import Tables

Engine = Literal["auto", "kernel", "torch"]
"""What retrieves: the op, PyTorch's operations, or the op on CUDA alone."""

_BLOCK = 2**18
"""Values of attention vectors that are gathered at a time: a megabyte, which a cache holds."""


class Found(NamedTuple):
    """What the head reads.

    Attributes:
        sums: (B, D), h.
        target: (B, D), the target's representation.
        context: (B, C) dense columns and features without a history.
    """

    sums: Tensor
    target: Tensor
    context: Tensor


def retrieved_sums(
    inputs: SequenceInputs, parts: Sequence[Part], k: int, *, engine: Engine = "auto"
) -> Tensor:
    """Return h (B, D) of vectors that have been looked up, with gradients.

    Args:
        inputs: the vectors.
        parts: what behaviours consist of.
        k: K.
        engine: what retrieves.
    """
    if not _is_by_kernel(engine, inputs.lengths):
        scores = dot_scores(inputs, parts)
        weights = masked_softmax(scores, top_k(scores, inputs.is_valid, k))
        histories = [inputs.vectors[p.representation.history] for p in parts]
        (sums,) = weighted_sums([weights], *histories)
        return sums
    targets = _scaled({p.target: inputs.vectors[p.attention.target] for p in parts}, parts)
    searched = []
    for part in parts:
        attention, representation = (
            inputs.vectors[keys.history] for keys in (part.attention, part.representation)
        )
        searched.append(
            SearchPart(
                attention.flatten(0, 1),
                representation.flatten(0, 1),
                _places(attention.shape[:2], attention.device),
                targets[part.target],
            )
        )
    return search_attention(searched, inputs.lengths, k).sums


def retrieve(
    batch: Batch, tables: Tables, parts: Sequence[Part], k: int, *, engine: Engine = "auto"
) -> Found | None:
    """Return what the head reads of a batch, without gradients, reading little.

    Representations are read of the K behaviours alone. Memory is 8 bytes for each id and some 40
    for each place of a history, whatever the widths of tables that store their vectors as they
    are; those of other tables are made for a block of examples at a time, by the op for all.

    Returns:
        None if an id is out of range, so that the tables' own policy decides; or if several
        processes share the tables, for those must make the same calls, and how many there are here
        depends on the examples.
    """
    if any(isinstance(part, ShardedTables) for part in planned_parts(tables)):
        return None
    lengths = batch.features[parts[0].history].lengths()
    ids = ids_of(batch, parts, Padding(lengths))
    if not all(_are_inside(ids[f], tables, key) for f, key in _reads(parts)):
        return None
    if _is_by_kernel(engine, lengths):
        sums = _sums_by_kernel(tables, parts, ids, lengths, k)
    else:
        sums = _sums_at(tables, parts, ids, *search(tables, parts, ids, lengths, k))
    return Found(
        sums=sums,
        target=torch.cat(
            [vectors_of(tables, p.representation.target, ids[p.target]) for p in parts], dim=1
        ),
        context=context_of(batch, tables),
    )


def vectors_of(tables: Tables, key: str, ids: Tensor) -> Tensor:
    """Return the vectors (..., D) of ids (...), none out of range."""
    stored = tables.stored_vectors(key)
    flat = ids.reshape(-1)
    found = tables.rows(key, flat) if stored is None else gather_rows(stored, flat)
    return found.view(*ids.shape, found.shape[1])


def search(
    tables: Tables, parts: Sequence[Part], ids: Mapping[str, Tensor], lengths: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return the first stage by PyTorch's operations, without gradients.

    Args:
        tables: whose attention vectors are read.
        parts: what behaviours consist of.
        ids: by feature: (B, L) of histories, padded behind; (B,) of targets. None out of range.
        lengths: (B,) behaviours of each history.
        k: K.

    Returns:
        The places (B, min(K, L)) of what is found, and what it counts, 0 where there is too little.
    """
    targets = _targets(tables, parts, ids)
    num, size = ids[parts[0].history].shape
    step = max(1, _BLOCK // (size * max(p.attention.dim for p in parts)))
    scores = targets[parts[0].target].new_zeros(num, size)
    for first in range(0, num, step):
        its = slice(first, first + step)
        for p in parts:
            vectors = vectors_of(tables, p.attention.history, ids[p.history][its])
            scores[its] += products(vectors, targets[p.target][its])
    is_valid = torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)
    places, is_found = top_places(scores, is_valid, k)
    return places, masked_softmax(scores.gather(1, places), is_found)


def _sums_by_kernel(
    tables: Tables, parts: Sequence[Part], ids: Mapping[str, Tensor], lengths: Tensor, k: int
) -> Tensor:
    targets = _targets(tables, parts, ids)
    representations = [tables.stored_vectors(p.representation.history) for p in parts]
    attentions = [tables.stored_vectors(p.attention.history) for p in parts]
    stored = [table for table in representations if table is not None]
    is_whole = (
        len(stored) == len(parts)
        and len({table.dtype for table in stored}) == 1
        and all(table is not None for table in attentions)
    )
    searched = []
    for p, attention, representation in zip(parts, attentions, representations, strict=True):
        history = ids[p.history]
        if attention is None:
            attention = vectors_of(tables, p.attention.history, history).flatten(0, 1)
            history = _places(history.shape, history.device)
        if not is_whole or representation is None:
            # Nothing is summed here: the search alone is wanted.
            representation = attention.new_zeros(1, 1)
        searched.append(SearchPart(attention, representation, history, targets[p.target]))
    found = search_attention(searched, lengths, k)
    if is_whole:
        return found.sums.float()
    return _sums_at(tables, parts, ids, found.positions.clamp(min=0), found.probabilities)


def _sums_at(
    tables: Tables,
    parts: Sequence[Part],
    ids: Mapping[str, Tensor],
    places: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return the sums (B, D) of the representations at `places` (B, K), by `weights` (B, K)."""
    histories = [
        vectors_of(tables, p.representation.history, ids[p.history].gather(1, places))
        for p in parts
    ]
    (sums,) = weighted_sums([weights], *histories)
    return sums


def _targets(tables: Tables, parts: Sequence[Part], ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the targets' attention vectors (B, D), divided by what scales their part's score."""
    return _scaled(
        {p.target: vectors_of(tables, p.attention.target, ids[p.target]) for p in parts}, parts
    )


def _scaled(targets: Mapping[str, Tensor], parts: Sequence[Part]) -> dict[str, Tensor]:
    """Return the vectors (B, D) of `targets`, divided by what scales their part's score."""
    groups = score_groups(parts)
    found = {}
    for p in parts:
        (group,) = [keys for keys in groups if p.attention in keys]
        found[p.target] = targets[p.target] / math.sqrt(sum(keys.dim for keys in group))
    return found


def _is_by_kernel(engine: Engine, lengths: Tensor) -> bool:
    return engine == "kernel" or (engine == "auto" and lengths.is_cuda)


def _places(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return the numbers (B, L) of places, example after example."""
    return torch.arange(math.prod(shape), device=device).view(*shape)


def _reads(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """Return each feature with the keys that it is read for."""
    return [
        (feature, key)
        for p in parts
        for role in (p.attention, p.representation)
        for feature, key in ((p.history, role.history), (p.target, role.target))
    ]


def _are_inside(ids: Tensor, tables: Tables, key: str) -> bool:
    limit = tables.outputs[key][0].num_ids
    return limit is None or not ids.numel() or bool(((ids >= 0) & (ids < limit)).all())
