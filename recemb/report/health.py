"""The health of trained tables: lengths, ranks, dead and merged vectors, by how often ids occur.

All of it looks at the vectors that a model is given, so it holds for every method; what physical
rows are read is told for tables that a lookup plan describes.

Shapes: `n` ids that are looked at, `D` width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.report.representation import rank_me
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.program import Buffers, run_program
from recemb.tables.tables import Tables

BUCKETS = (0, 1, 10, 100, 1000, 10_000)
"""Where buckets of training occurrences begin: never, 1 to 9, 10 to 99, ..."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Ids that occur about equally often.

    Attributes:
        first: the least number of occurrences.
        num_ids: how many ids there are.
        share_of_lookups: of all occurrences, theirs.
        mean_norm: of the L2 norms of those looked at; NaN if there is none.
    """

    first: int
    num_ids: int
    share_of_lookups: float
    mean_norm: float


@dataclass(frozen=True, kw_only=True)
class VectorHealth:
    """What the vectors of one key are like.

    Attributes:
        key: of the tables' output.
        table: its table.
        num_ids: ids of the feature.
        num_seen: those that the training split has.
        num_sampled: n, ids that were looked at; the figures below are theirs.
        width: D.
        norms: L2 norms at the quantiles 0, 1/4, 1/2, 3/4 and 1.
        num_zero: vectors of zeros.
        share_merged: of ids, those whose vector another id has, too.
        rank: effective rank of the vectors, RankMe, at most D.
        spectrum: (min(n, D),) singular values over the greatest.
        buckets: by occurrences; empty buckets are left out.
    """

    key: str
    table: str
    num_ids: int
    num_seen: int
    num_sampled: int
    width: int
    norms: tuple[float, ...]
    num_zero: int
    share_merged: float
    rank: float
    spectrum: Tensor
    buckets: tuple[Bucket, ...]


def vector_health(
    tables: Tables, key: str, counts: Tensor, *, max_ids: int = 20_000, seed: int = 0
) -> VectorHealth:
    """Return the health of one output's vectors.

    Args:
        tables: in eval mode.
        key: the output.
        counts: how often the training split has each id, (num_ids,).
        max_ids: where there are more ids, so many are drawn, each as likely.
        seed: of the draw.

    Raises:
        ValueError: on an unknown key.
    """
    if key not in tables.outputs:
        raise ValueError(f"tables: there is no key '{key}'; the keys are {list(tables.outputs)}")
    spec, _ = tables.outputs[key]
    ids = torch.arange(len(counts))
    if len(ids) > max_ids:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randperm(len(counts), generator=generator)[:max_ids].sort().values
    with torch.no_grad():
        vectors = tables.rows(key, ids).float()
    norms = vectors.double().norm(dim=1)
    values = torch.linalg.svdvals(vectors.double())
    _, which, sizes = torch.unique(vectors, dim=0, return_inverse=True, return_counts=True)
    return VectorHealth(
        key=key,
        table=spec.name,
        num_ids=len(counts),
        num_seen=int((counts > 0).sum()),
        num_sampled=len(ids),
        width=vectors.shape[1],
        norms=quantiles(norms),
        num_zero=int((norms == 0).sum()),
        share_merged=float((sizes[which] > 1).double().mean()),
        rank=rank_me(vectors) if float(values[0]) > 0 else 0.0,
        spectrum=values / values[0].clamp(min=torch.finfo(torch.float64).tiny),
        buckets=_buckets(counts, ids, norms),
    )


def quantiles(values: Tensor) -> tuple[float, ...]:
    """Return the values at the quantiles 0, 1/4, 1/2, 3/4 and 1, each one of `values` (n,)."""
    ordered = values.sort().values
    places = [round(q * (len(ordered) - 1) / 4) for q in range(5)]
    return tuple(float(ordered[place]) for place in places)


@dataclass(frozen=True, kw_only=True)
class RowUse:
    """How many rows of a physical table some ids read.

    Attributes:
        table: its name.
        num_rows: its rows.
        num_read: those that an id of the training split reads.
    """

    table: str
    num_rows: int
    num_read: int


def row_use(plan: LookupPlan, buffers: Buffers, counts: Mapping[str, Tensor]) -> list[RowUse]:
    """Return how many rows of each physical table the training split reads.

    Args:
        plan: which rows make which vectors.
        buffers: what its programs read.
        counts: how often the training split has each id of a feature.
    """
    read = {t.name: torch.zeros(t.num_rows, dtype=torch.bool) for t in plan.tables}
    for output in plan.outputs:
        seen = counts[output.feature].nonzero().squeeze(1)
        for lookup in output.all_lookups:
            rows = run_program(lookup.program, seen, buffers)
            read[lookup.table][rows[rows >= 0]] = True
    return [
        RowUse(table=t.name, num_rows=t.num_rows, num_read=int(read[t.name].sum()))
        for t in plan.tables
    ]


def _buckets(counts: Tensor, ids: Tensor, norms: Tensor) -> tuple[Bucket, ...]:
    total = max(1, int(counts.sum()))
    found = []
    for first, end in zip(BUCKETS, (*BUCKETS[1:], None), strict=True):
        mask = counts >= first if end is None else (counts >= first) & (counts < end)
        if bool(mask.any()):
            its = norms[mask[ids]]
            found.append(
                Bucket(
                    first=first,
                    num_ids=int(mask.sum()),
                    share_of_lookups=float(counts[mask].sum()) / total,
                    mean_norm=float(its.mean()) if len(its) else float("nan"),
                )
            )
    return tuple(found)


def counts_of(tables: Tables, by_feature: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, for each key, the occurrences of its table's ids in all features that share it."""
    return {
        key: torch.stack([by_feature[f] for f in spec.feature_names]).sum(0)
        for key, (spec, _) in tables.outputs.items()
    }


def one_of_each_table(keys: Sequence[str], tables: Tables) -> list[str]:
    """Return of each table the first of `keys`: the others have the same vectors."""
    found: dict[str, str] = {}
    for key in keys:
        found.setdefault(tables.outputs[key][0].name, key)
    return list(found.values())
