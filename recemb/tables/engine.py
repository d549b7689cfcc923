"""The lookup engine: executes the lookups of a plan, forward, backward and update.

Shapes: `B` examples, `S` lookups of a unit, `N` ids, `D` a group's width.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.backend import Backend, update_kernel
from recemb.tables.bags import Bags, is_one_hot
from recemb.tables.bounds import BoundsCheck
from recemb.tables.layout import Layout, Unit
from recemb.tables.lookup import fused_lookup
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.program import Buffers
from recemb.tables.store import GroupStore
from recemb.tables.unit import AnyLookups, UnitLookup
from recemb.tables.updater import Part, Updater

T = TypeVar("T")
_INT32_ROWS = 2**31 - 1


class Read:
    """What a pass over some units read.

    Attributes:
        bags: of each unit.
        lookups: of each unit.
        blocks: for each unit, for each of its groups, the vectors (num_outputs, D).
    """

    def __init__(
        self,
        bags: Sequence[Bags],
        lookups: Sequence[AnyLookups],
        blocks: Sequence[Sequence[Tensor]],
    ) -> None:
        self.bags = bags
        self.lookups = lookups
        self.blocks = blocks


class Pass:
    """The lookups of several units, done together, and updated together.

    A store that several units read is updated once, by the sum of all their gradients.

    Attributes:
        units: the units.
        is_held: whether rows are constants, which no backward pass reaches.

    Args:
        units: the units.
        updaters: those of all stores.
    """

    def __init__(self, units: Sequence[UnitLookup], updaters: Sequence[Updater]) -> None:
        self.units = tuple(units)
        self._updaters = tuple(updaters)
        self._is_fused = any(u.store.optimizer is not None for u in updaters)
        self.is_held = False

    def __call__(self, features: KeyedJaggedTensor) -> Read:
        """Return what the units read of `features`."""
        one_hot = is_one_hot(features)
        prepared = [unit(features, one_hot=one_hot) for unit in self.units]
        lookups = [its for _, its in prepared]
        flat: tuple[Tensor, ...]
        if self.is_held:
            with torch.no_grad():
                flat = self.read(lookups)
        elif self._is_fused and torch.is_grad_enabled():
            flat = fused_lookup(self, lookups, [its.differentiable for its in lookups])
        else:
            flat = self.read(lookups)
        return Read([bags for bags, _ in prepared], lookups, self._by_unit(flat))

    def read(self, lookups: Sequence[AnyLookups]) -> tuple[Tensor, ...]:
        """Return the vectors (num_outputs, D), unit by unit, group by group."""
        found = []
        for unit, its in zip(self.units, lookups, strict=True):
            for g in unit.unit.groups:
                store = self._updaters[g].store
                vectors = its.gather(store.weight)
                found.append(vectors if store.group.step is None else vectors * store.group.step)
        return tuple(found)

    def scale_gradients(
        self, lookups: Sequence[AnyLookups], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Return the gradient (N,) of the scales of each unit, summed over its groups."""
        found: list[Tensor | None] = []
        for unit, its, blocks in zip(self.units, lookups, self._by_unit(grads), strict=True):
            total: Tensor | None = None
            if its.differentiable is not None:
                for g, grad in zip(unit.unit.groups, blocks, strict=True):
                    if grad is not None:
                        store = self._updaters[g].store
                        part = its.scale_gradient(store.weight, grad)
                        part = part if store.group.step is None else part * store.group.step
                        total = part if total is None else total + part
            found.append(total)
        return found

    def update(self, lookups: Sequence[AnyLookups], grads: Sequence[Tensor | None]) -> None:
        """Update all stores that were read, given the gradients of what `read` returned."""
        if not all(unit.training for unit in self.units):
            raise RuntimeError(
                "tables are in eval mode, but a backward pass reached them; call train() before "
                "training, or look up under torch.no_grad() to evaluate"
            )
        parts: dict[int, list[Part]] = {}
        for unit, its, blocks in zip(self.units, lookups, self._by_unit(grads), strict=True):
            for g, grad in zip(unit.unit.groups, blocks, strict=True):
                if grad is not None:
                    grad = grad.float().contiguous()
                    parts.setdefault(g, []).append(Part(lookups=its, grad=grad))
        for g, its_parts in parts.items():
            self._updaters[g].add(its_parts)

    def _by_unit(self, flat: Sequence[T]) -> list[list[T]]:
        rest = iter(flat)
        return [[next(rest) for _ in unit.unit.groups] for unit in self.units]


class RowPass(Protocol):
    """The lookups of several units, done together, and updated together."""

    units: tuple[UnitLookup, ...]
    is_held: bool

    def __call__(self, features: KeyedJaggedTensor, /) -> Read:
        """Return what the units read of `features`."""
        ...


class RowEngine(nn.Module):
    """The memory of a plan's tables, or of what one process holds of it, and the passes over it.

    Attributes:
        stores: the memory.
        updaters: one for each store.
        pooled: reads what pooled outputs need.
        sequences: reads what sequences need.
        units: those of both.
    """

    stores: Sequence[GroupStore]
    updaters: Sequence[Updater]
    pooled: RowPass
    sequences: RowPass
    units: nn.ModuleList

    def store_of(self, table: str) -> GroupStore:
        """Return the store that holds the physical table `table`."""
        for store in self.stores:
            if any(t.name == table for t in store.group.tables):
                return store
        raise AssertionError(f"no table '{table}'")

    def hold(self, flag: bool) -> None:
        """Treat rows as constants, while `flag` is True."""
        self.pooled.is_held = self.sequences.is_held = flag


class Engine(RowEngine):
    """The memory of a plan's tables in one process, and the passes over it.

    Args:
        layout: groups and units.
        optimizer: how rows are updated; None leaves them to autograd.
        backend: what updates them.
        bounds: what happens to ids out of range.
        buffers: what address programs read.
        device: where everything lives.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        optimizer: TableOptimizer | None,
        backend: Backend,
        bounds: BoundsCheck,
        buffers: Buffers,
        device: torch.device,
    ) -> None:
        super().__init__()
        self._buffers_by_name = buffers
        self._bounds = bounds
        self._device = device
        self._layout = layout
        self.stores = [
            GroupStore(group, optimizer=optimizer, device=device) for group in layout.groups
        ]
        self.updaters = [
            Updater(store, kernel=update_kernel(store, backend, device)) for store in self.stores
        ]
        pooled = [self._unit(unit) for unit in layout.pooled]
        sequences = [self._unit(unit) for unit in layout.sequences]
        self.pooled = Pass(pooled, self.updaters)
        self.sequences = Pass(sequences, self.updaters)
        # Registered so that .to() and .train() reach them; the attributes above keep their types.
        self.units = nn.ModuleList([*pooled, *sequences])
        self.memory = nn.ModuleList(self.stores)

    def _unit(self, unit: Unit) -> UnitLookup:
        fits = max(self._layout.groups[g].num_rows for g in unit.groups) < _INT32_ROWS
        kernels = {self.updaters[g].backend for g in unit.groups}
        # FBGEMM reads 64-bit rows; the others are sorted faster in 32 bits.
        is_wide = not fits or kernels == {"fbgemm"}
        return UnitLookup(
            unit,
            buffers=self._buffers_by_name,
            bounds=self._bounds,
            dtype=torch.int64 if is_wide else torch.int32,
            in_kernel=fits and kernels == {"triton"},
            device=self._device,
        )
