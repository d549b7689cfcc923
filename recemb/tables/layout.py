"""Where the tables of a plan lie in memory, and which lookups are done together.

Tables of one width and dtype lie one after the other in one buffer.

Shapes: `R` rows of a buffer, `D` its width, `S` lookups.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from recemb.tables.lookup_plan import DType, LookupPlan, Output, PhysicalTable, VirtualLookup


@dataclass(frozen=True, kw_only=True)
class Group:
    """The tables that share a buffer (R, D).

    Attributes:
        name: names the buffer's tensors.
        width: D.
        dtype: of the values.
        tables: in the plan's order, which is their order in the buffer.
        first_rows: each table's first row in the buffer.
        num_rows: R.
        step: what integers are multiplied by; None for none.
    """

    name: str
    width: int
    dtype: DType
    tables: tuple[PhysicalTable, ...]
    first_rows: tuple[int, ...]
    num_rows: int
    step: float | None = None

    @property
    def is_trained(self) -> bool:
        """Return whether its tables are."""
        return self.tables[0].is_trained


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One virtual lookup.

    Attributes:
        output: the output that it is part of.
        number: which of the output's lookups it is, the importance weights' being the last.
        lookup: table, address program and row program.
        first_row: the table's first row in its group's buffer.
        num_rows: rows of the table.
    """

    output: Output
    number: int
    lookup: VirtualLookup
    first_row: int
    num_rows: int

    @property
    def address(self) -> tuple[object, ...]:
        """Return all that decides the rows; slots that agree in it read the same ones."""
        o = self.output
        return (
            o.feature,
            o.num_ids,
            o.pooling == "mean",
            self.lookup.program,
            self.first_row,
            self.num_rows,
        )


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Groups that the same features address in the same way.

    Ids are prepared, and sorted, once for all of them. A vector table and a first-order table of
    every feature make one unit of two groups.

    Attributes:
        slots: for each of `groups`, its S lookups, which agree in their address.
        groups: indices of the groups.
        is_pooled: whether bags are summed; if not, every id is looked up by itself.
    """

    slots: tuple[tuple[Slot, ...], ...]
    groups: tuple[int, ...]
    is_pooled: bool

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Return the outputs whose ids are read: the first of each feature and number of ids."""
        found: dict[tuple[str, int | None], Output] = {}
        for slot in self.slots[0]:
            found.setdefault(_ids_of(slot), slot.output)
        return tuple(found.values())

    @property
    def sources(self) -> tuple[int, ...]:
        """Return, for each of the S lookups, which of `outputs` gives it its ids."""
        reads = list(dict.fromkeys(_ids_of(slot) for slot in self.slots[0]))
        return tuple(reads.index(_ids_of(slot)) for slot in self.slots[0])


def _ids_of(slot: Slot) -> tuple[str, int | None]:
    return slot.output.feature, slot.output.num_ids


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The groups and the units.

    Attributes:
        groups: the groups.
        pooled: units for the pooled outputs: those of linear outputs are pooled themselves.
        sequences: units for the outputs that are not pooled.
    """

    groups: tuple[Group, ...]
    pooled: tuple[Unit, ...]
    sequences: tuple[Unit, ...]


def group_tables(plan: LookupPlan) -> tuple[Group, ...]:
    """Return the groups of a plan's tables.

    Tables that only sequences read have groups of their own, for sequences are looked up, and
    updated, by a call of their own. Of those, tables that serve the same features with different
    vectors are in different groups, so that ids are prepared, and sorted, once for all of them.
    """
    pooled_tables = {
        lookup.table
        for output in plan.outputs
        if output.pooling != "none"
        for lookup in output.all_lookups
    }
    turns = _turns(plan)
    members: dict[tuple[int, DType, float | None, int | None], list[PhysicalTable]] = {}
    for table in plan.tables:
        turn = None if table.name in pooled_tables else turns[table.name]
        members.setdefault((table.width, table.dtype, table.step, turn), []).append(table)
    return tuple(_group(key[-1], tables) for key, tables in members.items())


def _turns(plan: LookupPlan) -> dict[str, int]:
    """Return, for each table, how many before it serve the same features with other outputs."""
    seen: dict[tuple[object, ...], list[set[str]]] = {}
    turns = {}
    for table in plan.tables:
        readers = [o for o in plan.outputs if table.name in {v.table for v in o.all_lookups}]
        keys = {o.key for o in readers}
        features = (table.width, table.dtype, table.step, *(o.feature for o in readers))
        others = seen.setdefault(features, [])
        turns[table.name] = len([other for other in others if not other & keys])
        if keys not in others:
            others.append(keys)
    return turns


def lay_out(plan: LookupPlan, *, composed: Collection[int] = ()) -> Layout:
    """Return the layout of `plan`.

    Args:
        plan: the plan.
        composed: indices of the groups whose rows are read one by one, whatever becomes of them.
    """
    groups = group_tables(plan)
    places = {
        table.name: (g, first)
        for g, group in enumerate(groups)
        for table, first in zip(group.tables, group.first_rows, strict=True)
    }
    linear: dict[int, list[Slot]] = {}
    one_by_one: dict[int, list[Slot]] = {}
    sequences: dict[int, list[Slot]] = {}
    for output in plan.outputs:
        is_plain = all(places[v.table][0] not in composed for v in output.all_lookups)
        pooled = linear if output.is_linear and is_plain else one_by_one
        target = sequences if output.pooling == "none" else pooled
        for number, lookup in enumerate(output.all_lookups):
            group, first = places[lookup.table]
            slot = Slot(
                output=output,
                number=number,
                lookup=lookup,
                first_row=first,
                num_rows=plan.table(lookup.table).num_rows,
            )
            target.setdefault(group, []).append(slot)
    return Layout(
        groups=groups,
        pooled=(*_units(linear, is_pooled=True), *_units(one_by_one, is_pooled=False)),
        sequences=_units(sequences, is_pooled=False),
    )


def _group(turn: int | None, tables: Sequence[PhysicalTable]) -> Group:
    first_rows, num_rows = [], 0
    for table in tables:
        first_rows.append(num_rows)
        num_rows += table.num_rows
    first = tables[0]
    words = ["pooled" if turn is None else "sequence", first.dtype, str(first.width)]
    if turn:
        words.append(f"turn{turn}")
    if first.step is not None:
        # A module's name has no dots.
        words.append(f"{first.step:g}".replace(".", "p"))
    return Group(
        name="_".join(words),
        width=first.width,
        dtype=first.dtype,
        tables=tuple(tables),
        first_rows=tuple(first_rows),
        num_rows=num_rows,
        step=first.step,
    )


def _units(slots: dict[int, list[Slot]], *, is_pooled: bool) -> tuple[Unit, ...]:
    by_address: dict[tuple[object, ...], list[int]] = {}
    for group, lookups in slots.items():
        by_address.setdefault(tuple(slot.address for slot in lookups), []).append(group)
    return tuple(
        Unit(
            groups=tuple(groups),
            slots=tuple(tuple(slots[g]) for g in groups),
            is_pooled=is_pooled,
        )
        for groups in by_address.values()
    )
