"""The lookup engine of sharded tables: rows are fetched from the ranks that hold them.

Addresses are computed where the batch is; each distinct row of a batch is asked for once; pooling
and combination happen where the batch is, too.

Shapes: `U` distinct rows, `N` ids, `D` a group's width.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.backend import Backend, update_kernel
from recemb.tables.bags import is_one_hot
from recemb.tables.bounds import BoundsCheck
from recemb.tables.engine import Read, RowEngine
from recemb.tables.exchange import (
    Exchange,
    LocalExchange,
    LocalRows,
    placed_exchange,
    row_wise_exchange,
)
from recemb.tables.layout import Group, Layout, Unit
from recemb.tables.lookup import Lookups
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.physical_table import PhysicalTable
from recemb.tables.program import Buffers
from recemb.tables.replica import ReplicaUpdater
from recemb.tables.sharding import Shard, ShardingPlan
from recemb.tables.store import GroupStore
from recemb.tables.unit import UnitLookup
from recemb.tables.updater import Updater


class GroupFetch:
    """Fetches rows of a group's tables, however each of them is sharded.

    Args:
        group: the tables.
        exchanges: those of its shards; each table is in one of them, once or column by column.
    """

    def __init__(self, group: Group, exchanges: Sequence[Exchange]) -> None:
        self._group = group
        self._exchanges = tuple(exchanges)
        names = [table.name for table in group.tables]
        self._tables = [[names.index(s.table) for s in e.shards] for e in exchanges]
        self._edges = torch.tensor([*group.first_rows, group.num_rows])
        # For each table, where its blocks are among what all exchanges return, column by column.
        flat = [s for e in exchanges for s in e.shards]
        order = sorted(range(len(flat)), key=lambda i: flat[i].first_column)
        self._blocks = [[i for i in order if flat[i].table == name] for name in names]

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the vectors (U, D) of the rows (U,) of the group's buffer; collective.

        Args:
            rows: int64, ascending, none twice.
        """
        edges = torch.searchsorted(rows, self._edges.to(rows.device)).tolist()
        firsts = self._group.first_rows
        asked = [rows[a:b] - f for a, b, f in zip(edges[:-1], edges[1:], firsts, strict=True)]
        found: list[Tensor] = []
        for exchange, tables in zip(self._exchanges, self._tables, strict=True):
            found += exchange.fetch([asked[t] for t in tables])
        by_table = [
            found[its[0]] if len(its) == 1 else torch.cat([found[i] for i in its], dim=1)
            for its in self._blocks
        ]
        return by_table[0] if len(by_table) == 1 else torch.cat(by_table)


class ShardedPass:
    """The lookups of several units, done together, and updated together; collective.

    Attributes:
        units: the units.
        is_held: whether rows are constants, which no backward pass reaches.

    Args:
        units: the units.
        fetches: of each group.
    """

    def __init__(self, units: Sequence[UnitLookup], fetches: Sequence[GroupFetch]) -> None:
        self.units = tuple(units)
        self.is_held = False
        self._fetches = tuple(fetches)

    def __call__(self, features: KeyedJaggedTensor) -> Read:
        """Return what the units read of `features`."""
        one_hot = is_one_hot(features)
        prepared = [unit(features, one_hot=one_hot) for unit in self.units]
        lookups = [its for _, its in prepared if isinstance(its, Lookups)]
        blocks: list[dict[int, Tensor]] = [{} for _ in self.units]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_held):
            for g in sorted({g for unit in self.units for g in unit.unit.groups}):
                readers = [u for u, unit in enumerate(self.units) if g in unit.unit.groups]
                its = [lookups[u] for u in readers]
                vectors, places = self._fetched(g, its)
                for u, lookup, place in zip(readers, its, places, strict=True):
                    blocks[u][g] = dataclasses.replace(lookup, rows=place).gather(vectors)
        return Read(
            [bags for bags, _ in prepared],
            lookups,
            [[its[g] for g in u.unit.groups] for u, its in zip(self.units, blocks, strict=True)],
        )

    def _fetched(self, g: int, lookups: Sequence[Lookups]) -> tuple[Tensor, list[Tensor]]:
        """Return the distinct vectors (U, D) of a group, and the place in them of every row.

        Args:
            g: the group.
            lookups: all that read it.
        """
        rows = torch.cat([its.rows for its in lookups]).long()
        if any(its.may_be_absent for its in lookups):
            is_there = rows >= 0
            distinct, inverse = torch.unique(rows[is_there], return_inverse=True)
            places = torch.full_like(rows, -1)
            places[is_there] = inverse
        else:
            distinct, places = torch.unique(rows, return_inverse=True)
        vectors = self._fetches[g](distinct)
        if vectors.shape[0] == 0:
            # What is absent is read from somewhere before it is made zero.
            vectors = F.pad(vectors, (0, 0, 0, 1))
        sizes = [its.rows.numel() for its in lookups]
        parts = torch.split(places, sizes)
        return vectors, [p.to(its.rows.dtype) for p, its in zip(parts, lookups, strict=True)]


class ShardedEngine(RowEngine):
    """What one rank holds of a plan's tables, and the passes over all of them.

    Attributes:
        shards: those that lie in each of `stores`, in order.

    Args:
        layout: groups and units.
        optimizer: how rows are updated.
        backend: what updates them.
        bounds: what happens to ids out of range.
        buffers: what address programs read.
        device: where everything lives.
        sharding: who holds what.
        process_group: the ranks.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        optimizer: TableOptimizer,
        backend: Backend,
        bounds: BoundsCheck,
        buffers: Buffers,
        device: torch.device,
        sharding: ShardingPlan,
        process_group: dist.ProcessGroup,
    ) -> None:
        super().__init__()
        self._sharding = sharding
        self._process_group = process_group
        self._device = device
        self._optimizer = optimizer
        self._backend: Backend = backend
        self.stores: list[GroupStore] = []
        self.updaters: list[Updater] = []
        self.replicas: list[ReplicaUpdater] = []
        self.shards: list[tuple[Shard, ...]] = []
        self._local: list[LocalRows] = []
        fetches = [GroupFetch(group, list(self._exchanges(group))) for group in layout.groups]

        def lookup(unit: Unit) -> UnitLookup:
            return UnitLookup(
                unit,
                buffers=buffers,
                bounds=bounds,
                dtype=torch.int64,
                in_kernel=False,
                device=device,
            )

        pooled = [lookup(unit) for unit in layout.pooled]
        sequences = [lookup(unit) for unit in layout.sequences]
        self.pooled = ShardedPass(pooled, fetches)
        self.sequences = ShardedPass(sequences, fetches)
        self.fetches = fetches
        self.units = nn.ModuleList([*pooled, *sequences])
        self.memory = nn.ModuleList(self.stores)

    def train(self, mode: bool = True) -> "ShardedEngine":
        """Set the mode: rows are updated in training mode alone."""
        super().train(mode)
        for local in self._local:
            local.is_training = mode
        return self

    def _exchanges(self, group: Group) -> Iterator[Exchange]:
        """Yield the exchanges of a group's shards: one for each kind and width of them."""
        every = [s for table in group.tables for s in self._sharding.of(table.name)]
        kinds = self._sharding.kinds
        rank = self._process_group.rank()
        replicated = [s for s in every if kinds[s.table] == "data_parallel" and s.rank == rank]
        if replicated:
            yield LocalExchange(replicated, self._hold(group, replicated, is_replica=True))
        blocks = [s for s in every if kinds[s.table] == "row_wise"]
        if blocks:
            mine = [s for s in blocks if s.rank == rank]
            sizes = {table.name: table.num_rows for table in group.tables}
            yield row_wise_exchange(
                mine,
                self._hold(group, mine),
                num_rows=[sizes[s.table] for s in mine],
                process_group=self._process_group,
                device=self._device,
            )
        placed = [s for s in every if kinds[s.table] in ("table_wise", "column_wise")]
        for width in sorted({s.width for s in placed}):
            its = [s for s in placed if s.width == width]
            yield placed_exchange(
                its,
                self._hold(group, [s for s in its if s.rank == rank], width=width),
                process_group=self._process_group,
                device=self._device,
            )

    def _hold(
        self,
        group: Group,
        shards: Sequence[Shard],
        *,
        width: int | None = None,
        is_replica: bool = False,
    ) -> LocalRows:
        """Return the memory of this rank's shards of a group, all of one width."""
        width = group.width if width is None else width
        held = [shard for shard in shards if shard.num_rows]
        updater = None
        if held:
            store = GroupStore(
                _local_group(group, held), optimizer=self._optimizer, device=self._device
            )
            kernel = update_kernel(store, self._backend, self._device)
            updater = Updater(store, kernel=kernel)
            self.stores.append(store)
            self.updaters.append(updater)
            self.shards.append(tuple(held))
        replica = ReplicaUpdater(updater, self._process_group) if updater and is_replica else None
        self.replicas.extend([replica] if replica else [])
        local = LocalRows(held, replica or updater, width=width, device=self._device)
        self._local.append(local)
        return local


def _local_group(group: Group, shards: Sequence[Shard]) -> Group:
    """Return the group of some shards' memory; its name, which seeds rounding, is the whole's."""
    first_rows, num_rows = [], 0
    for shard in shards:
        first_rows.append(num_rows)
        num_rows += shard.num_rows
    return Group(
        name=group.name,
        width=shards[0].width,
        dtype=group.dtype,
        tables=tuple(
            PhysicalTable(
                name=s.name, num_rows=s.num_rows, width=s.width, dtype=group.dtype, step=group.step
            )
            for s in shards
        ),
        first_rows=tuple(first_rows),
        num_rows=num_rows,
        step=group.step,
    )
