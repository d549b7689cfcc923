"""The instruction list between a method and the engine: address, fetch, compose.

For every output (a feature's vector) a plan lists virtual lookups. Each turns an id into a row of a
physical table (`recemb.tables.program`), reads it through a row program, and the output combines
the rows, before pooling. A plan is plain data: it validates itself, serialises to JSON, and prints.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

from recemb.tables.physical_table import DType, PhysicalTable
from recemb.tables.program import (
    Program,
    may_be_absent,
    program_from_json,
    program_limit,
    program_to_json,
)
from recemb.tables.spec import Pooling

__all__ = [
    "Combine",
    "DType",
    "LookupPlan",
    "Output",
    "PhysicalTable",
    "Projection",
    "RowProgram",
    "VirtualLookup",
]

Combine = Literal["concat", "sum", "mean", "product", "weighted"]
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class RowProgram:
    """What happens to a row between memory and combination, in this order.

    Attributes:
        bits: a row's bytes are codes of 4 or 2 bits, the lowest first; None for values as they are.
        width: how many codes a row has; for `bits` alone.
        scale: buffer (num_rows,) that each row is multiplied by; None for none.
        bias: buffer (num_rows,) that is added after that; None for none.
        threshold: a row whose norm is not above this becomes zero; None for no mask.
        norm: which norm, 1 or 2.
        prefix: only the first so many values are kept; None for all.
    """

    bits: int | None = None
    width: int | None = None
    scale: str | None = None
    bias: str | None = None
    threshold: float | None = None
    norm: Literal[1, 2] = 1
    prefix: int | None = None

    @property
    def is_identity(self) -> bool:
        """Return whether rows are read as they are."""
        return self == RowProgram(norm=self.norm)

    @property
    def buffers(self) -> tuple[str, ...]:
        """Return the names of the buffers that it reads."""
        return tuple(name for name in (self.scale, self.bias) if name is not None)

    def __str__(self) -> str:
        parts = []
        if self.bits is not None:
            parts.append(f"in {self.bits} bits")
        if self.scale is not None:
            parts.append(f"* {self.scale}")
        if self.bias is not None:
            parts.append(f"+ {self.bias}")
        if self.threshold is not None:
            parts.append(f"if norm{self.norm} > {self.threshold:g}")
        if self.prefix is not None:
            parts.append(f"[:{self.prefix}]")
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class VirtualLookup:
    """One row of one physical table.

    Attributes:
        table: name of the physical table.
        program: the steps from the id to the row.
        row: what happens to the row.
    """

    table: str
    program: Program = ()
    row: RowProgram = field(default_factory=RowProgram)


@dataclass(frozen=True, kw_only=True)
class Output:
    """A feature's vector.

    Attributes:
        key: names it in the output.
        feature: whose ids are looked up.
        owner: the logical table, for messages.
        num_ids: ids are in [0, num_ids); None for any int64.
        embedding_dim: width of the vector.
        pooling: how the vectors of a bag become one; "none" for sequences.
        lookups: the rows that make the vector.
        combine: "concat" puts the rows side by side; "sum", "mean" and "product" go element by
            element; "weighted" sums them with the weights that `importance` reads.
        importance: a row of as many values as there are lookups; for "weighted" alone.
        projection: name of the matrix that the combined vector is multiplied by; None for none.
        padding: how many zeros follow.
    """

    key: str
    feature: str
    owner: str
    num_ids: int | None
    embedding_dim: int
    pooling: Pooling
    lookups: tuple[VirtualLookup, ...]
    combine: Combine = "concat"
    importance: VirtualLookup | None = None
    projection: str | None = None
    padding: int = 0

    @property
    def all_lookups(self) -> tuple[VirtualLookup, ...]:
        """Return the lookups, the one of the importance weights last."""
        return self.lookups if self.importance is None else (*self.lookups, self.importance)

    @property
    def is_stored(self) -> bool:
        """Return whether the vector of id `i` is row `i` of one table, as it is."""
        (lookup, *others) = self.all_lookups
        is_made = others or lookup.program or self.projection is not None or self.padding
        return not is_made and lookup.row.is_identity

    @property
    def is_linear(self) -> bool:
        """Return whether pooling first and combining afterwards gives the same vector.

        It does not for a mean of ids that some of several lookups know and others do not: each
        lookup would divide by the number of those that it knows.
        """
        is_split = len(self.lookups) > 1 and any(may_be_absent(v.program) for v in self.lookups)
        if is_split and self.pooling == "mean":
            return False
        return self.combine in ("concat", "sum", "mean") and all(
            lookup.row.is_identity for lookup in self.lookups
        )


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A matrix (in_width, out_width) that outputs are multiplied by.

    Attributes:
        name: unique.
        in_width: width of the combined rows.
        out_width: width of the output.
    """

    name: str
    in_width: int
    out_width: int


@dataclass(frozen=True, kw_only=True)
class LookupPlan:
    """Which rows make which vectors.

    Attributes:
        tables: the physical tables, in the order of their memory.
        outputs: in configured order.
        projections: the matrices that outputs name.
        buffers: one more than the largest value of each buffer that a program reads.

    Raises:
        ValueError: if a name is missing, or used twice, widths do not fit, or a program can leave
            its table.
    """

    tables: tuple[PhysicalTable, ...]
    outputs: tuple[Output, ...]
    projections: tuple[Projection, ...] = ()
    buffers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, names in (
            ("physical table", [t.name for t in self.tables]),
            ("output", [o.key for o in self.outputs]),
            ("projection", [p.name for p in self.projections]),
        ):
            if twice := sorted({n for n in names if names.count(n) > 1}):
                raise ValueError(f"plan: {what} {twice} is named twice; rename one of each")
        for output in self.outputs:
            self._check(output)

    def table(self, name: str) -> PhysicalTable:
        """Return the physical table `name`.

        Raises:
            ValueError: if there is none.
        """
        return _named(self.tables, name, "physical table")

    def projection(self, name: str) -> Projection:
        """Return the projection `name`.

        Raises:
            ValueError: if there is none.
        """
        return _named(self.projections, name, "projection")

    def row_width(self, lookup: VirtualLookup) -> int:
        """Return how many values a row has."""
        return self.table(lookup.table).width if lookup.row.width is None else lookup.row.width

    def combined_width(self, output: Output) -> int:
        """Return the width of the combined rows of `output`, before the projection."""
        widths = [self.row_width(lookup) for lookup in output.lookups]
        return sum(widths) if output.combine == "concat" else widths[0]

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(
            {
                "format": _FORMAT,
                "tables": [asdict(t) for t in self.tables],
                "outputs": [_output_to_json(o) for o in self.outputs],
                "projections": [asdict(p) for p in self.projections],
                "buffers": dict(self.buffers),
            },
            indent=1,
        )

    @staticmethod
    def from_json(text: str) -> "LookupPlan":
        """Return the plan that `to_json` wrote.

        Raises:
            ValueError: if it is no such JSON, or the plan is not valid.
        """
        try:
            entry = json.loads(text)
            if entry["format"] != _FORMAT:
                raise ValueError(
                    f"plan: format {entry['format']} is not known, only {_FORMAT}; it was written "
                    "by another version of recemb"
                )
            return LookupPlan(
                tables=tuple(PhysicalTable(**t) for t in entry["tables"]),
                outputs=tuple(_output_from_json(o) for o in entry["outputs"]),
                projections=tuple(Projection(**p) for p in entry["projections"]),
                buffers={str(k): int(v) for k, v in entry["buffers"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"plan: this is not the JSON of a LookupPlan: {error!r}") from error

    def __str__(self) -> str:
        lines = [f"{t.name}: {t.num_rows:,} x {t.width} {t.dtype}" for t in self.tables]
        for output in self.outputs:
            ids = "any id" if output.num_ids is None else f"{output.num_ids:,} ids"
            rows = [_describe(lookup) for lookup in output.lookups]
            body = rows[0] if len(rows) == 1 else f"{output.combine}({', '.join(rows)})"
            if output.importance is not None:
                body += f" by {_describe(output.importance)}"
            if output.projection is not None:
                body += f" @ {output.projection}"
            body += f", {output.padding} zeros" if output.padding else ""
            lines.append(
                f"{output.key} ({ids}, {output.pooling}) = {body} -> {output.embedding_dim}"
            )
        return "\n".join(lines)

    def _check(self, output: Output) -> None:
        where = f"plan: output '{output.key}'"
        if output.pooling not in get_args(Pooling) or output.combine not in get_args(Combine):
            raise ValueError(
                f"{where}: unknown pooling '{output.pooling}' or combine '{output.combine}'"
            )
        if not output.lookups:
            raise ValueError(f"{where}: lookups is empty; give at least one")
        if (output.combine == "weighted") != (output.importance is not None):
            raise ValueError(f"{where}: combine 'weighted', and it alone, needs an importance")
        self._check_widths(output, where)
        for lookup in output.all_lookups:
            self._check_lookup(lookup, output, where)

    def _check_widths(self, output: Output, where: str) -> None:
        widths = [self.row_width(lookup) for lookup in output.lookups]
        if output.combine != "concat" and len(set(widths)) > 1:
            raise ValueError(
                f"{where}: {output.combine} needs rows of one width, got widths {widths}"
            )
        importance = output.importance
        if importance is not None and self.row_width(importance) != len(widths):
            raise ValueError(
                f"{where}: the importance table is {self.row_width(importance)} wide, but "
                f"there are {len(widths)} lookups to weigh"
            )
        width = self.combined_width(output)
        if output.projection is not None:
            projection = self.projection(output.projection)
            if projection.in_width != width:
                raise ValueError(
                    f"{where}: projection '{projection.name}' takes width {projection.in_width}, "
                    f"but the rows make {width}"
                )
            width = projection.out_width
        if output.padding < 0 or width + output.padding != output.embedding_dim:
            raise ValueError(
                f"{where}: the rows make a vector of {width} values, and {output.padding} zeros "
                f"follow, but embedding_dim is {output.embedding_dim}"
            )

    def _check_lookup(self, lookup: VirtualLookup, output: Output, where: str) -> None:
        table = self.table(lookup.table)
        limit = program_limit(lookup.program, output.num_ids, self.buffers)
        if limit is None or limit > table.num_rows:
            reach = "any row" if limit is None else f"row {limit - 1}"
            raise ValueError(
                f"{where}: its program can reach {reach} of table '{table.name}', which has "
                f"{table.num_rows}; hash or reduce the id first"
            )
        if not table.is_trained and lookup.row.scale is None:
            raise ValueError(
                f"{where}: table '{table.name}' is {table.dtype}; its rows need a scale"
            )
        row, width = lookup.row, self.row_width(lookup)
        num_bytes = -(-width * (row.bits or 8) // 8)
        if (row.bits is None) != (row.width is None) or row.bits not in (None, 2, 4):
            raise ValueError(f"{where}: bits must be 4 or 2 and come with a width, got {row}")
        if row.bits is not None and (table.dtype != "uint8" or table.width != num_bytes):
            raise ValueError(
                f"{where}: {width} codes of {row.bits} bits are {num_bytes} uint8, but table "
                f"'{table.name}' has {table.width} {table.dtype}"
            )
        if row.prefix is not None and not 0 <= row.prefix <= width:
            raise ValueError(f"{where}: prefix must be in [0, {width}], got {row.prefix}")


_Entry = TypeVar("_Entry", PhysicalTable, Projection)


def _named(entries: Sequence[_Entry], name: str, what: str) -> _Entry:
    for entry in entries:
        if entry.name == name:
            return entry
    raise ValueError(f"plan: there is no {what} '{name}', only {[e.name for e in entries]}")


def _describe(lookup: VirtualLookup) -> str:
    steps = " ".join(str(step) for step in lookup.program)
    row = str(lookup.row)
    return f"{lookup.table}[id{' ' + steps if steps else ''}]{' ' + row if row else ''}"


def _lookup_to_json(lookup: VirtualLookup) -> dict[str, Any]:
    return {
        "table": lookup.table,
        "program": program_to_json(lookup.program),
        "row": asdict(lookup.row),
    }


def _lookup_from_json(entry: Mapping[str, Any]) -> VirtualLookup:
    return VirtualLookup(
        table=entry["table"],
        program=program_from_json(entry["program"]),
        row=RowProgram(**entry["row"]),
    )


def _output_to_json(output: Output) -> dict[str, Any]:
    entry = {f.name: getattr(output, f.name) for f in fields(output)}
    entry["lookups"] = [_lookup_to_json(lookup) for lookup in output.lookups]
    if output.importance is not None:
        entry["importance"] = _lookup_to_json(output.importance)
    return entry


def _output_from_json(entry: Mapping[str, Any]) -> Output:
    values = dict(entry)
    values["lookups"] = tuple(_lookup_from_json(lookup) for lookup in entry["lookups"])
    if entry["importance"] is not None:
        values["importance"] = _lookup_from_json(entry["importance"])
    return Output(**values)
