"""Planned tables whose rows lie on several ranks.

Shapes: `N` ids, `D` a table's width.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from recemb.tables.formula import STATE_PARTS, counts_steps
from recemb.tables.gather import gather_rows
from recemb.tables.initial import Initial, draw_blocks
from recemb.tables.layout import Layout, group_tables
from recemb.tables.planned import PlannedTables
from recemb.tables.sharded_engine import ShardedEngine
from recemb.tables.sharding import Shard, ShardingPlan
from recemb.tables.storage import Storage
from recemb.tables.tables import Share, Tables
from recemb.tables.tensor_chunks import Chunk, TensorChunks
from recemb.tables.updater import UNFINISHED


class ShardedTables(PlannedTables):
    """Tables of which each rank holds its shards, and no more.

    Every rank passes its part of a batch; `forward`, `sequences` and `rows` are collective, and so
    are backward passes: all ranks must make the same calls in the same order, with batches of any
    size, also of none. Losses add up over ranks: the update is that of one process whose loss is
    the sum of all ranks' losses.

    Projections are ordinary parameters, the same on every rank; whoever trains must sum their
    gradients over the ranks.

    A state_dict has the names of unsharded tables; sharded tensors are `TensorChunks`. Loading
    takes those, or whole tensors, of which each rank copies its part.

    Args:
        tables: what to shard, on the meta device.
        sharding: who holds what.
        process_group: the ranks; None for all.
        device: where this rank's shards live.

    Raises:
        ValueError: if the tables cannot be sharded in this way; says why.
    """

    def __init__(
        self,
        tables: PlannedTables,
        sharding: ShardingPlan,
        *,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if reason := tables.why_rows_stay() or _why_not(tables, sharding):
            raise ValueError(f"tables cannot be sharded: {reason}")
        group = dist.group.WORLD if process_group is None else process_group
        assert group is not None
        assert tables.ingredients is not None
        if group.size() != sharding.world_size:
            raise ValueError(
                f"tables: the sharding is for {sharding.world_size} ranks, but there are "
                f"{group.size()}; plan it for those"
            )
        self.sharding = sharding
        self.process_group = group
        self._storage = tables.storage()
        ingredients = tables.ingredients
        super().__init__(
            tables.specs,
            tables.plan,
            optimizer=tables.optimizer,
            backend=ingredients.backend,
            bounds=ingredients.bounds,
            buffers=ingredients.buffers,
            initial=ingredients.initial,
            transform=ingredients.transform,
            seed=ingredients.seed,
            device=device,
        )
        for transform in self.transforms.all():
            transform.process_group = group

    def storage(self) -> Storage:
        """Return the exact bytes over all ranks, replicas counted once."""
        return self._storage

    def rank_bytes(self) -> list[int]:
        """Return the bytes of rows and their optimizer state that each rank holds."""
        return self.sharding.rank_bytes(self.plan.tables, self.optimizer)

    def stored_vectors(self, key: str) -> Tensor | None:
        """Return None: no rank has them all."""
        return None

    def table(self, name: str) -> Tensor:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"table '{name}' is sharded, so no process has all of it; read rows with rows(), or "
            "the whole from a checkpoint"
        )

    def freeze(self) -> PlannedTables:
        """Refuse.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "sharded tables have no serving form; load their checkpoint into one process, which "
            "`recemb export` does, and freeze those"
        )

    @property
    def _sharded(self) -> ShardedEngine:
        assert isinstance(self.engine, ShardedEngine)
        return self.engine

    def _make_engine(self, layout: Layout) -> ShardedEngine:
        """Return this rank's part of the memory, and what reads all of it."""
        assert self.optimizer is not None
        return ShardedEngine(
            layout,
            optimizer=self.optimizer,
            backend=self.backend,
            bounds=self._bounds,
            buffers=self.plan_buffers,
            device=self._device,
            sharding=self.sharding,
            process_group=self.process_group,
        )

    def _draw(self, initial: Mapping[str, Initial | Tensor], seed: int) -> None:
        """Draw the weights that unsharded tables would have, and keep this rank's."""

        def write(table: str, first: int, block: Tensor) -> None:
            for shard, target in self._held(table):
                begin = max(first, shard.first_row)
                end = min(first + block.shape[0], shard.first_row + shard.num_rows)
                if begin < end:
                    rows = block[begin - first : end - first]
                    columns = rows[:, shard.first_column : shard.first_column + shard.width]
                    target[begin - shard.first_row : end - shard.first_row].copy_(columns)

        draw_blocks(self.plan, write, self.projections, initial, seed)

    def _rows_of(self, table: str, rows: Tensor) -> Tensor:
        """Return rows (N,) of a physical table, (N, D), in float32; collective."""
        for g, group in enumerate(group_tables(self.plan)):
            names = [t.name for t in group.tables]
            if table in names:
                first = group.first_rows[names.index(table)]
                distinct, places = torch.unique(rows + first, return_inverse=True)
                with torch.no_grad():
                    return gather_rows(self._sharded.fetches[g](distinct), places)
        raise AssertionError(f"no table '{table}'")

    def _held(self, table: str, part: str | None = None) -> Iterator[tuple[Shard, Tensor]]:
        """Yield this rank's shards of a table, and their weights, or a part of their state."""
        for store, shards in zip(self._sharded.stores, self._sharded.shards, strict=True):
            if all(shard.table != table for shard in shards):
                continue
            tensors = dict(store.tensors())
            for shard in shards:
                if shard.table == table:
                    name = f"optimizer.{shard.name}.{part}"
                    yield shard, tensors[name if part else f"embedding_bags.{shard.name}.weight"]

    def _chunks(self) -> Iterator[tuple[str, TensorChunks]]:
        """Yield the names, for a state_dict, and this rank's part of every sharded tensor."""
        assert self.optimizer is not None
        for table in self.plan.tables:
            dtype: torch.dtype = getattr(torch, table.dtype)
            state = STATE_PARTS[self.optimizer.kind] if table.is_trained else ()
            shape = (table.num_rows, table.width)
            name = f"embedding_bags.{table.name}.weight"
            yield name, _chunked(shape, dtype, self._held(table.name))
            for part, is_rowwise in state:
                yield (
                    f"optimizer.{table.name}.{part}",
                    _chunked(
                        shape[:1] if is_rowwise else shape,
                        torch.float32,
                        self._held(table.name, part),
                    ),
                )

    def _steps(self) -> dict[str, int]:
        """Return the step counts of the tables that have one, by their names; collective."""
        assert self.optimizer is not None
        counted = [
            table.name
            for table in self.plan.tables
            if table.is_trained and (counts_steps(self.optimizer.kind) or table.dtype != "float32")
        ]
        steps = dict.fromkeys(counted, 0)
        for store, shards in zip(self._sharded.stores, self._sharded.shards, strict=True):
            steps |= {s.table: store.step for s in shards if s.table in steps}
        if not steps:
            return steps
        # A rank that holds nothing of a table does not count its updates.
        counts = torch.tensor(list(steps.values()), device=self._device)
        dist.all_reduce(counts, dist.ReduceOp.MAX, group=self.process_group)
        return dict(zip(steps, counts.tolist(), strict=True))

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        # Gradients of replicas wait before they are exchanged, and not in the copy's own updater.
        is_waiting = any(updater.has_collected for updater in self._sharded.updaters)
        if is_waiting or any(replica.has_collected for replica in self._sharded.replicas):
            raise RuntimeError(UNFINISHED)
        for name, chunks in self._chunks():
            destination[prefix + name] = chunks
        for name, step in self._steps().items():
            destination[f"{prefix}optimizer.{name}.step"] = torch.tensor(step)
        for name, tensor in self._named_tensors():
            destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        targets: dict[str, TensorChunks | Tensor] = dict(self._chunks())
        targets |= dict(self._named_tensors())
        steps = [f"optimizer.{name}.step" for name in self._steps()]
        for name, target in targets.items():
            source = state_dict.get(prefix + name)
            if source is None:
                missing_keys.append(prefix + name)
            elif source.shape != target.shape:
                error_msgs.append(
                    f"{prefix + name}: the tables need {tuple(target.shape)}, but the state has "
                    f"{tuple(source.shape)}"
                )
            elif isinstance(target, TensorChunks):
                for chunk in target.chunks:
                    chunk.fill_from(source)
            else:
                target.detach().copy_(source)
        missing_keys += [prefix + name for name in steps if prefix + name not in state_dict]
        self._load_steps({n: state_dict[prefix + n] for n in steps if prefix + n in state_dict})
        expected = {prefix + name for name in (*targets, *steps)}
        if strict:
            unexpected_keys += [
                k
                for k in state_dict
                if k.startswith(prefix)
                and not k.startswith(f"{prefix}transforms.")
                and k not in expected
            ]

    def _load_steps(self, steps: Mapping[str, Any]) -> None:
        for store, shards in zip(self._sharded.stores, self._sharded.shards, strict=True):
            for shard in shards:
                if (name := f"optimizer.{shard.table}.step") in steps:
                    store.step = int(steps[name])


def planned_parts(tables: Tables) -> list[PlannedTables]:
    """Return the tables, among `tables` and those within them, that look rows up."""
    return [module for module in tables.modules() if isinstance(module, PlannedTables)]


def shard_tables(
    tables: Tables,
    sharding: ShardingPlan,
    *,
    process_group: dist.ProcessGroup | None = None,
    device: torch.device | str = "cpu",
) -> Tables:
    """Return the same tables, of which this rank holds its shards; collective.

    Args:
        tables: what to shard, on the meta device.
        sharding: who holds what of the physical tables of all `planned_parts`.
        process_group: the ranks; None for all.
        device: where this rank's part lives.

    Raises:
        ValueError: if the tables cannot be sharded in this way; says why.
    """
    if reason := tables.why_not_sharded():
        raise ValueError(f"tables cannot be sharded: {reason}")

    group = dist.group.WORLD if process_group is None else process_group
    assert group is not None

    def rows(part: Tables) -> Tables:
        assert isinstance(part, PlannedTables)
        return ShardedTables(part, sharding, process_group=group, device=device)

    return tables.sharded(Share(rows=rows, process_group=group, device=torch.device(device)))


def _why_not(tables: PlannedTables, sharding: ShardingPlan) -> str | None:
    """Return why tables cannot be sharded in this way, or None if they can."""
    optimizer = tables.optimizer
    assert optimizer is not None
    cut = [
        t.name
        for t in tables.plan.tables
        if sharding.kinds[t.name] == "column_wise"
        and any(shard.width < t.width for shard in sharding.of(t.name))
    ]
    if cut and any(is_rowwise for _, is_rowwise in STATE_PARTS[optimizer.kind]):
        return (
            f"{optimizer.kind} needs the mean over a whole row's gradient, but tables {cut} are "
            "cut into columns; choose adagrad, adam or sgd, or shard them row_wise or table_wise"
        )
    return None


def _chunked(
    shape: tuple[int, ...], dtype: torch.dtype, held: Iterable[tuple[Shard, Tensor]]
) -> TensorChunks:
    return TensorChunks(
        shape,
        dtype,
        [
            Chunk((shard.first_row, shard.first_column)[: len(shape)], values.detach())
            for shard, values in held
        ],
    )
