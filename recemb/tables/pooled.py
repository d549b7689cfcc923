"""The pooled lookup of all units, and the lookup of sequences.

Shapes: `B` examples, `F` lookups of a group, `N` ids, `D` embedding_dim, `W` the sum of all widths.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.bags import Bags, is_one_hot
from recemb.tables.lookup import FusedLookup, Lookup, Lookups, address, shift
from recemb.tables.unit import Gradient, UnitLookup

Runs = tuple[tuple[int, int], ...]


class PooledLookup:
    """Puts the groups' vectors side by side.

    Args:
        units: the units.
        columns: for each unit, for each of its groups, the runs of columns (first, number) that its
            lookups fill.
    """

    def __init__(self, units: Sequence[UnitLookup], columns: Sequence[Sequence[Runs]]) -> None:
        self.units = tuple(units)
        self._columns = tuple(tuple(runs) for runs in columns)
        flat = [runs for unit in self._columns for runs in unit]
        self._sizes = [[num for _, num in runs] for runs in flat]
        # The output's runs from left to right: which block each comes from.
        order = [(first, index) for index, runs in enumerate(flat) for first, _ in runs]
        self._order = [index for _, index in sorted(order)]

    def __call__(self, features: KeyedJaggedTensor) -> Tensor:
        """Return the vectors (B, W), contiguous."""
        if not self.units:
            return torch.empty(features.stride(), 0)
        one_hot = is_one_hot(features)
        lookups = []
        for unit in self.units:
            bags, ids = unit.ids(features, one_hot=one_hot)
            lookups.append(address(bags, ids, unit.first_rows, unit.is_mean))
        return _look_up(self, self.units, lookups)[0]

    def read(self, lookups: Sequence[Lookups]) -> tuple[Tensor]:
        """Return the vectors (B, W)."""
        blocks = []
        for unit, its in zip(self.units, lookups, strict=True):
            batch_size = its.num_outputs // its.num_features
            for store in unit.stores:
                width = its.num_features * store.group.width
                blocks.append(its.gather(store.weight).view(batch_size, width))
        if len(blocks) == 1:
            return (blocks[0],)
        parts = [
            iter(torch.split(block, sizes, dim=1))
            for block, sizes in zip(blocks, self._sizes, strict=True)
        ]
        return (torch.cat([next(parts[index]) for index in self._order], dim=1),)

    def update(self, lookups: Sequence[Lookups], grads: Sequence[Tensor | None]) -> None:
        """Update all units, given the gradient (B, W)."""
        values = grads[0]
        if values is None:
            return
        for unit, its, columns in zip(self.units, lookups, self._columns, strict=True):
            unit.update(
                its,
                [
                    Gradient(values=values, runs=runs, width=store.group.width)
                    for store, runs in zip(unit.stores, columns, strict=True)
                ],
            )


class SequenceLookup:
    """Looks up every id of a unit by itself."""

    def __init__(self, unit: UnitLookup) -> None:
        self.unit = unit

    def __call__(
        self, features: KeyedJaggedTensor, *, one_hot: bool
    ) -> tuple[Bags, tuple[Tensor, ...]]:
        """Return the bags, and the vectors (N, D) of their ids from each of the unit's groups."""
        bags, ids = self.unit.ids(features, one_hot=one_hot)
        rows = shift(ids, self.unit.first_rows, bags.sizes)
        lookups = Lookups(
            ids=ids,
            rows=rows,
            offsets=None,
            lengths=None,
            scales=None,
            num_features=len(bags.sizes),
            num_outputs=rows.numel(),
        )
        return bags, _look_up(self, (self.unit,), [lookups])

    def read(self, lookups: Sequence[Lookups]) -> tuple[Tensor, ...]:
        """Return the vectors (N, D) from each group."""
        return tuple(lookups[0].gather(store.weight) for store in self.unit.stores)

    def update(self, lookups: Sequence[Lookups], grads: Sequence[Tensor | None]) -> None:
        """Update the unit, given the gradients (N, D) of each group."""
        widths = [store.group.width for store in self.unit.stores]
        self.unit.update(
            lookups[0],
            [
                None if grad is None else Gradient(values=grad, runs=((0, width),), width=width)
                for grad, width in zip(grads, widths, strict=True)
            ],
        )


def _look_up(
    lookup: Lookup, units: Sequence[UnitLookup], lookups: Sequence[Lookups]
) -> tuple[Tensor, ...]:
    """Return what `lookup` reads, through autograd where it is to be trained."""
    if units[0].stores[0].optimizer is None or not torch.is_grad_enabled():
        return lookup.read(lookups)
    if any(its.scales is not None and its.scales.requires_grad for its in lookups):
        raise ValueError(
            "tables: the features' weights require grad, which tables that update themselves do "
            "not compute; detach the weights, or build the tables with optimizer=None"
        )
    anchor = torch.zeros((), requires_grad=True)
    vectors: tuple[Tensor, ...] = FusedLookup.apply(  # type: ignore[no-untyped-call]
        anchor, lookup, lookups
    )
    return vectors
