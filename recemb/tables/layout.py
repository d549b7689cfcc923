"""Where tables lie in memory: all tables of one width, one after the other, in one buffer.

Shapes: `R` rows of a buffer, `D` its width, `F` lookups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recemb.tables.spec import TableSpec, output_keys


@dataclass(frozen=True, kw_only=True)
class Group:
    """The tables that share a buffer (R, D): one width, and all pooled or none.

    Attributes:
        name: names the buffer's tensors.
        width: D.
        tables: in configured order, which is their order in the buffer.
        first_rows: each table's first row in the buffer.
        num_rows: R.
    """

    name: str
    width: int
    tables: tuple[TableSpec, ...]
    first_rows: tuple[int, ...]
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One output key's lookup.

    Attributes:
        key: the output key.
        feature: the feature whose ids are looked up.
        table: the table they are looked up in.
        first_row: the table's first row in its group's buffer.
    """

    key: str
    feature: str
    table: TableSpec
    first_row: int


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Groups that the same features address in the same way.

    Ids are prepared, and sorted, once for all of them. A vector table and a first-order table of
    every feature make one unit of two groups.

    Attributes:
        slots: for each of `groups`, its F lookups; they agree in feature, first row, number of rows
            and pooling.
        groups: indices of the groups.
    """

    slots: tuple[tuple[Slot, ...], ...]
    groups: tuple[int, ...]

    @property
    def features(self) -> tuple[str, ...]:
        """Return the F features, in order; one may appear twice."""
        return tuple(s.feature for s in self.slots[0])


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The groups, and the units of pooled lookups and of sequences.

    Attributes:
        keys: the pooled output keys, in configured order.
        groups: the groups.
        pooled: the units whose lookups are pooled.
        sequences: the units whose lookups are not.
    """

    keys: tuple[str, ...]
    groups: tuple[Group, ...]
    pooled: tuple[Unit, ...]
    sequences: tuple[Unit, ...]

    def columns(self) -> dict[int, tuple[tuple[int, int], ...]]:
        """Return, for each pooled group, its runs of columns (first, number) in the output.

        The output holds the keys side by side in configured order. The runs, one after the other,
        hold the group's lookups in the order of its slots.
        """
        owner = {
            slot.key: (group, slot.table.embedding_dim)
            for unit in self.pooled
            for group, slots in zip(unit.groups, unit.slots, strict=True)
            for slot in slots
        }
        runs: dict[int, list[tuple[int, int]]] = {group: [] for group, _ in owner.values()}
        column = 0
        for key in self.keys:
            group, width = owner[key]
            if runs[group] and sum(runs[group][-1]) == column:
                first, num = runs[group].pop()
                runs[group].append((first, num + width))
            else:
                runs[group].append((column, width))
            column += width
        return {group: tuple(r) for group, r in runs.items()}


def lay_out(specs: Sequence[TableSpec]) -> Layout:
    """Return the layout of `specs`.

    Pooled and unpooled tables never share a group, so that a group is looked up once per step.
    """
    members: dict[tuple[int, bool], list[TableSpec]] = {}
    for spec in specs:
        members.setdefault((spec.embedding_dim, spec.pooling == "none"), []).append(spec)
    groups = tuple(_group(width, is_seq, t) for (width, is_seq), t in members.items())
    first_rows = {
        spec.name: first
        for group in groups
        for spec, first in zip(group.tables, group.first_rows, strict=True)
    }
    slots: dict[int, list[Slot]] = {g: [] for g in range(len(groups))}
    index_of = {spec.name: g for g, group in enumerate(groups) for spec in group.tables}
    keys = output_keys(specs)
    for key, (spec, feature) in keys.items():
        slots[index_of[spec.name]].append(
            Slot(key=key, feature=feature, table=spec, first_row=first_rows[spec.name])
        )
    is_sequence = [group.tables[0].pooling == "none" for group in groups]
    return Layout(
        keys=tuple(k for k, (spec, _) in keys.items() if spec.pooling != "none"),
        groups=groups,
        pooled=_units({g: tuple(s) for g, s in slots.items() if not is_sequence[g]}),
        sequences=_units({g: tuple(s) for g, s in slots.items() if is_sequence[g]}),
    )


def _group(width: int, is_sequence: bool, tables: Sequence[TableSpec]) -> Group:
    first_rows, num_rows = [], 0
    for spec in tables:
        first_rows.append(num_rows)
        num_rows += spec.num_embeddings
    return Group(
        name=f"sequence_{width}" if is_sequence else f"pooled_{width}",
        width=width,
        tables=tuple(tables),
        first_rows=tuple(first_rows),
        num_rows=num_rows,
    )


def _units(slots: dict[int, tuple[Slot, ...]]) -> tuple[Unit, ...]:
    by_address: dict[tuple[tuple[str, int, int, str], ...], list[int]] = {}
    for group, lookups in slots.items():
        address = tuple(
            (s.feature, s.first_row, s.table.num_embeddings, s.table.pooling) for s in lookups
        )
        by_address.setdefault(address, []).append(group)
    return tuple(
        Unit(groups=tuple(groups), slots=tuple(slots[g] for g in groups))
        for groups in by_address.values()
    )
