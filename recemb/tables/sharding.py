"""Which process holds which part of which physical table.

Kinds of sharding, in TorchRec's words:

- data_parallel: every rank holds the whole table, and all apply the same update.
- table_wise: one rank holds it whole.
- row_wise: rank r holds the r-th block of ceil(num_rows / world_size) rows.
- column_wise: several ranks hold all rows, each an equal part of their values.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets

from recemb.tables.formula import STATE_PARTS
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.physical_table import PhysicalTable

Kind = Literal["data_parallel", "table_wise", "row_wise", "column_wise"]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of a table.

    Attributes:
        table: the table.
        rank: who holds it.
        first_row: its first row in the table.
        num_rows: its rows; may be 0.
        first_column: its first value in a row of the table.
        width: its values in a row.
    """

    table: str
    rank: int
    first_row: int
    num_rows: int
    first_column: int
    width: int

    @property
    def name(self) -> str:
        """Return a name that no other shard of a plan has."""
        return f"{self.table}[{self.first_row}:,{self.first_column}:]@{self.rank}"


@dataclass(frozen=True, kw_only=True)
class TableSharding:
    """How one table is sharded.

    Attributes:
        kind: see above.
        ranks: who holds it: one rank for table_wise, one for each part for column_wise, which may
            name a rank twice; None leaves it to the plan. All ranks otherwise.

    Raises:
        ValueError: on an unknown kind, or ranks that it has no use for.
    """

    kind: Kind
    ranks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"sharding: kind must be one of {', '.join(get_args(Kind))}, got '{self.kind}'"
            )
        if self.ranks is None:
            return
        if self.kind in ("data_parallel", "row_wise"):
            raise ValueError(f"sharding: {self.kind} has all ranks; leave out ranks={self.ranks}")
        if not self.ranks or (self.kind == "table_wise" and len(self.ranks) > 1):
            raise ValueError(
                f"sharding: {self.kind} needs "
                f"{'one rank' if self.kind == 'table_wise' else 'a rank for each part'}, got "
                f"{list(self.ranks)}"
            )


@dataclass(frozen=True, kw_only=True)
class ShardingPlan:
    """The shards of all tables.

    Attributes:
        world_size: number of ranks.
        kinds: how each table is sharded, by its name.
        shards: all shards, table by table; of a data-parallel table one for each rank.
    """

    world_size: int
    kinds: Mapping[str, Kind]
    shards: tuple[Shard, ...]

    def of(self, table: str) -> tuple[Shard, ...]:
        """Return the shards of a table."""
        return tuple(shard for shard in self.shards if shard.table == table)

    def rank_bytes(
        self, tables: Iterable[PhysicalTable], optimizer: TableOptimizer | None
    ) -> list[int]:
        """Return the bytes that each rank holds: of weights and of optimizer state.

        Args:
            tables: the physical tables.
            optimizer: how rows are updated; None for the weights alone.
        """
        found = [0] * self.world_size
        for table in tables:
            parts = STATE_PARTS[optimizer.kind] if optimizer and table.is_trained else ()
            value_bytes = _value_bytes(table)
            value_bytes += 4 * sum(1 for _, is_rowwise in parts if not is_rowwise)
            row_bytes = 4 * sum(1 for _, is_rowwise in parts if is_rowwise)
            for shard in self.of(table.name):
                found[shard.rank] += shard.num_rows * (shard.width * value_bytes + row_bytes)
        return found

    def describe(self, tables: Sequence[PhysicalTable]) -> list[str]:
        """Return a line for each table: how it is sharded, and over which ranks."""
        lines = []
        for table in tables:
            shards = self.of(table.name)
            parts = ", ".join(
                f"{s.rank}: {s.num_rows:,} x {s.width}" for s in shards[:8] if s.num_rows
            )
            more = f", ... {len(shards) - 8} more" if len(shards) > 8 else ""
            lines.append(f"{table.name}: {self.kinds[table.name]}, rank {parts}{more}")
        return lines


def plan_sharding(
    tables: Sequence[PhysicalTable],
    shardings: Mapping[str, TableSharding],
    *,
    world_size: int,
) -> ShardingPlan:
    """Return the shards of all tables.

    Tables that are table-wise without a rank go, the largest first, to the rank that holds the
    fewest bytes. Column-wise tables without ranks are cut into as many parts as there are ranks,
    or, where their width cannot be, into the largest number below that divides it.

    Args:
        tables: the physical tables.
        shardings: how each is sharded, by its name.
        world_size: number of ranks.

    Raises:
        ValueError: if a table has none, a rank is out of range, or a width cannot be cut.
    """
    if missing := [t.name for t in tables if t.name not in shardings]:
        raise ValueError(f"sharding: physical tables {missing} have none; name them or a default")
    if unknown := sorted(shardings.keys() - {t.name for t in tables}):
        raise ValueError(
            f"sharding: there are no physical tables {unknown}, only {[t.name for t in tables]}"
        )
    filled = [0] * world_size
    shards: dict[str, list[Shard]] = {}
    # Tables with given ranks first, then the largest, so that the others find the emptiest rank.
    for table in sorted(tables, key=lambda t: (shardings[t.name].ranks is None, -_bytes(t))):
        sharding = shardings[table.name]
        outside = [r for r in sharding.ranks or () if not 0 <= r < world_size]
        if outside:
            raise ValueError(
                f"sharding: table '{table.name}' is to lie on ranks {outside}, but ranks are in "
                f"[0, {world_size})"
            )
        its = _shards(table, sharding, filled)
        for shard in its:
            filled[shard.rank] += shard.num_rows * shard.width * _value_bytes(table)
        shards[table.name] = its
    return ShardingPlan(
        world_size=world_size,
        kinds={t.name: shardings[t.name].kind for t in tables},
        shards=tuple(shard for table in tables for shard in shards[table.name]),
    )


def read_shardings(
    text: str | Mapping[str, Any], tables: Sequence[PhysicalTable]
) -> dict[str, TableSharding]:
    """Return how each table is sharded.

    Args:
        text: one kind for all tables; or what a plan's file holds: under `tables`, by a table's
            name, a kind or `{kind: ..., ranks: [...]}`, and under `default` that of the others.
        tables: the physical tables.

    Raises:
        ValueError: on an unknown kind or table, or if it is no such plan.
    """
    if isinstance(text, str):
        return {table.name: _table_sharding(text) for table in tables}
    unknown = sorted(text.keys() - {"default", "tables"})
    given = text.get("tables", {})
    if unknown or not isinstance(given, Mapping):
        raise ValueError(
            f"sharding: a plan has `default` and `tables`, got {unknown or type(given).__name__}"
        )
    names = [table.name for table in tables]
    if strangers := sorted(given.keys() - set(names)):
        raise ValueError(f"sharding: there are no physical tables {strangers}, only {names}")
    found = {name: given.get(name, text.get("default")) for name in names}
    if missing := [name for name, entry in found.items() if entry is None]:
        raise ValueError(f"sharding: the plan says nothing of tables {missing}; add a `default`")
    return {name: _table_sharding(entry) for name, entry in found.items()}


def _table_sharding(entry: Any) -> TableSharding:
    if isinstance(entry, str):
        kind: Any = entry
        return TableSharding(kind=kind)
    if not isinstance(entry, Mapping) or not {"kind"} <= entry.keys() <= {"kind", "ranks"}:
        raise ValueError(f"sharding: a table's entry is a kind, or kind and ranks, got {entry!r}")
    ranks = entry.get("ranks")
    return TableSharding(kind=entry["kind"], ranks=None if ranks is None else tuple(ranks))


def _value_bytes(table: PhysicalTable) -> int:
    return int(getattr(torch, table.dtype).itemsize)


def _bytes(table: PhysicalTable) -> int:
    return table.num_rows * table.width * _value_bytes(table)


def _shards(table: PhysicalTable, sharding: TableSharding, filled: Sequence[int]) -> list[Shard]:
    """Return the shards of one table, given the bytes on each rank."""
    every = list(range(len(filled)))
    rows, width = table.num_rows, table.width
    match sharding.kind:
        case "data_parallel":
            boxes = [(rank, 0, rows, 0, width) for rank in every]
        case "table_wise":
            rank = sharding.ranks[0] if sharding.ranks else min(every, key=lambda r: filled[r])
            boxes = [(rank, 0, rows, 0, width)]
        case "row_wise":
            whole = torch.empty(rows, width, device="meta")
            sizes, offsets = calculate_shard_sizes_and_offsets(
                whole, len(filled), len(filled), "row_wise"
            )
            boxes = [(r, offsets[r][0], sizes[r][0], 0, width) for r in every]
        case "column_wise":
            ranks = sharding.ranks or _column_ranks(width, len(filled))
            if width % len(ranks):
                raise ValueError(
                    f"sharding: table '{table.name}' is {width} wide, which {len(ranks)} parts do "
                    "not divide; give another number of ranks, or another kind"
                )
            part = width // len(ranks)
            boxes = [(rank, 0, rows, i * part, part) for i, rank in enumerate(ranks)]
    return [
        Shard(table=table.name, rank=r, first_row=row, num_rows=n, first_column=column, width=w)
        for r, row, n, column, w in boxes
    ]


def _column_ranks(width: int, world_size: int) -> tuple[int, ...]:
    num = max(n for n in range(1, min(width, world_size) + 1) if width % n == 0)
    return tuple(range(num))
