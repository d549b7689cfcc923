"""What the two roles of a behaviour's vector do to it: gradient domination and conflict.

The gradient of a vector that serves both roles is the sum of one through the scores (attention) and
one through what is summed (representation). Both are computed here for any model of sequences, with
shared tables or with apart ones, without touching its training.

Source: Feng et al., "Long-Sequence Recommendation Models Need Decoupled Embeddings", ICLR 2025,
section 3 (figures 2 and 3), which trains two copies of a table that are kept equal; here the shared
vectors are given to the two roles as two leaves of the graph, which gives the same two gradients.

Shapes: `U` distinct rows of a table that a batch touches, `D` its width.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, RoleKeys, part_named
from recemb.models.sequence.sequence_model import SequenceModel
from recemb.tables.tables import Tables


@dataclass(frozen=True, kw_only=True)
class RoleGradients:
    """The gradients of the rows of one column that a batch touches.

    Attributes:
        ids: (U,) ascending; where histories and targets have tables apart, those of the history's
            table, then those of the target's.
        attention: (U, D) through the scores, of the mean loss.
        representation: (U, D') through what is summed.
        is_shared: whether both roles read the same rows; if not, their directions say nothing of
            each other.
    """

    ids: Tensor
    attention: Tensor
    representation: Tensor
    is_shared: bool = True

    @property
    def norms(self) -> tuple[float, float]:
        """Return the mean L2 norms of rows that are not zero: attention's, representation's."""
        found = []
        for gradient in (self.attention, self.representation):
            norms = gradient.norm(dim=1)
            found.append(float(norms[norms > 0].mean()) if bool((norms > 0).any()) else 0.0)
        return found[0], found[1]

    @property
    def cosines(self) -> Tensor:
        """Return the cosine of both gradients of each row for which both are not zero.

        Raises:
            ValueError: if the roles differ in width.
        """
        if self.attention.shape != self.representation.shape:
            raise ValueError(
                f"the roles' vectors are {self.attention.shape[1]} and "
                f"{self.representation.shape[1]} wide; directions can be compared in one width only"
            )
        is_both = (self.attention != 0).any(1) & (self.representation != 0).any(1)
        return torch.cosine_similarity(self.attention[is_both], self.representation[is_both])


def role_gradients(
    model: SequenceModel, batch: Batch, tables: Tables, *, column: str
) -> RoleGradients:
    """Return the gradients of the rows of a column, role by role; nothing is changed.

    Args:
        model: in the mode in which it trains, if that is what is asked.
        batch: the examples.
        tables: the model's.
        column: the target column whose table is meant: item, category, ...

    Raises:
        ValueError: if there is no such column.
    """
    own = part_named(model.parts, column, "role_gradients")
    with torch.no_grad():
        looked_up = model.inputs(batch, tables)
    inputs = _with_leaves(looked_up, model.parts)
    split = copy.copy(model)
    split.parts = tuple(_apart(part) for part in model.parts)
    part = part_named(split.parts, column, "role_gradients")
    leaves = [
        inputs.vectors[key]
        for keys in (part.attention, part.representation)
        for key in (keys.history, keys.target)
    ]
    with _kept_buffers(model), torch.enable_grad():
        loss = split.loss_sum(inputs, batch.labels) / len(batch)
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    is_valid = inputs.is_valid
    history_ids, target_ids = (batch.features[f].values() for f in (part.history, part.target))
    is_apart = _table(tables, own.attention.history) != _table(tables, own.attention.target)
    which = torch.cat([torch.zeros_like(history_ids), torch.full_like(target_ids, is_apart)])
    rows = torch.stack([which, torch.cat([history_ids, target_ids])])
    distinct, places = torch.unique(rows, dim=1, return_inverse=True)

    def by_row(history: Tensor, target: Tensor) -> Tensor:
        grad = torch.cat([history[is_valid], target])
        return grad.new_zeros(distinct.shape[1], grad.shape[1]).index_add(0, places, grad)

    return RoleGradients(
        is_shared=own.attention.history == own.representation.history,
        ids=distinct[1],
        attention=by_row(grads[0], grads[1]),
        representation=by_row(grads[2], grads[3]),
    )


def _table(tables: Tables, key: str) -> str:
    return tables.outputs[key][0].name


def _apart(part: Part) -> Part:
    """Return the part with keys of its own for each role."""

    def renamed(keys: RoleKeys, role: str) -> RoleKeys:
        return replace(keys, history=f"{keys.history}#{role}", target=f"{keys.target}#{role}")

    return replace(
        part,
        attention=renamed(part.attention, "attention"),
        representation=renamed(part.representation, "representation"),
    )


def _with_leaves(inputs: SequenceInputs, parts: tuple[Part, ...]) -> SequenceInputs:
    """Return the inputs with a leaf for each key of the parts that `_apart` makes."""
    vectors = {}
    for part in parts:
        split = _apart(part)
        for old, new in (
            (part.attention, split.attention),
            (part.representation, split.representation),
        ):
            vectors[new.history] = inputs.vectors[old.history].clone().requires_grad_()
            vectors[new.target] = inputs.vectors[old.target].clone().requires_grad_()
    return inputs._replace(vectors=vectors)


@contextmanager
def _kept_buffers(model: SequenceModel) -> Iterator[None]:
    """Put the running statistics of norms back afterwards."""
    kept = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(model.buffers(), kept, strict=True):
            buffer.copy_(value)
