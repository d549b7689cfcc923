"""Tables that see, in every backward pass, how much each id's vectors are pulled at.

A field is what the same ids address: a feature's vectors and its first-order weights, say.

Shapes: `B` examples, `N` ids, `D` a table's width.
"""

import abc
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recemb.tables.planned import PlannedTables
from recemb.tables.spec import TableSpec

Field = tuple[TableSpec, ...]
"""Tables that the same ids address."""

Seen = Mapping[Field, tuple[Tensor, Tensor]]
"""By field, the ids (N,) int64 of a backward pass and the norms (N,) of their own gradients."""


class WatchedTables(PlannedTables, abc.ABC):
    """Planned tables whose backward passes call `observe`.

    An id's norm is that of the gradient of its vectors in all tables of its field, side by side:
    that of its bag, times its weight, over the bag's length where bags are averaged.
    """

    @abc.abstractmethod
    def observe(self, seen: Seen, num_examples: int) -> None:
        """Take note of the ids of a backward pass."""

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return one pooled vector per key and example; its backward pass is observed."""
        found = super().forward(features)
        values = found.values()
        if self.training and values.requires_grad:
            values.register_hook(lambda grad: self._see_pooled(features, grad))
        return found

    def sequences(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Return the vectors of all ids, not pooled; their backward pass is observed."""
        found = super().sequences(features)
        for key, vectors in found.items():
            if self.training and vectors.values().requires_grad:
                self._see_sequence(key, features, vectors.values())
        return found

    def _see_pooled(self, features: KeyedJaggedTensor, grad: Tensor) -> None:
        parts = torch.split(grad, list(self.embedding_dims.values()), dim=1)
        grads = dict(zip(self.keys, parts, strict=True))
        key_of = {(spec.name, feature): key for key, (spec, feature) in self.outputs.items()}
        seen = {}
        for field in fields_of(self.specs):
            if field[0].pooling == "none":
                continue
            found = []
            for feature in field[0].feature_names:
                norms = norms_of([grads[key_of[spec.name, feature]] for spec in field])
                found.append(_of_bags(features[feature], norms, field[0]))
            ids, values = (torch.cat(its) for its in zip(*found, strict=True))
            seen[field] = _inside(ids, values, field[0])
        self.observe(seen, grad.shape[0])

    def _see_sequence(self, key: str, features: KeyedJaggedTensor, vectors: Tensor) -> None:
        spec, feature = self.outputs[key]
        (field,) = [its for its in fields_of(self.specs) if spec in its]

        def see(grad: Tensor) -> None:
            ids = features[feature].values().long()
            self.observe({field: _inside(ids, norms_of([grad]), spec)}, features.stride())

        register: Callable[..., object] = vectors.register_hook  # torch gives it no types
        register(see)


def fields_of(specs: Sequence[TableSpec]) -> list[Field]:
    """Return the tables of each field: those of the same features, ids and pooling."""
    found: dict[tuple[object, ...], list[TableSpec]] = {}
    for spec in specs:
        key = (spec.feature_names, spec.num_embeddings, spec.pooling)
        found.setdefault(key, []).append(spec)
    return [tuple(its) for its in found.values()]


def norms_of(grads: Sequence[Tensor]) -> Tensor:
    """Return the norms (N,) of the rows of all `grads` (N, D), side by side."""
    total = sum((g.float().square().sum(dim=1) for g in grads), start=grads[0].new_zeros(()))
    assert isinstance(total, Tensor)
    return total.sqrt()


def sum_by_id(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return distinct ids (N,) int64, in order, and the sums of their values (N,), float64."""
    distinct, places = torch.unique(ids, return_inverse=True)
    # bincount adds in order, so that the sum is the same on every run.
    return distinct, torch.bincount(places, weights=values.double(), minlength=distinct.numel())


def _of_bags(bags: JaggedTensor, norms: Tensor, spec: TableSpec) -> tuple[Tensor, Tensor]:
    """Return the ids (N,) of bags, and their own norms, given those (B,) of the pooled vectors."""
    lengths = bags.lengths().long()
    if spec.pooling == "mean":
        norms = norms / lengths.clamp(min=1)
    values = norms.repeat_interleave(lengths)
    weights = bags.weights_or_none()
    if weights is not None:
        values = values * weights.detach().abs()
    return bags.values().long(), values


def _inside(ids: Tensor, values: Tensor, spec: TableSpec) -> tuple[Tensor, Tensor]:
    """Return those that the table has, and that have a gradient; `bounds` may let others pass."""
    is_inside = (ids >= 0) & (ids < spec.num_embeddings) & (values > 0)
    return ids[is_inside], values[is_inside]
