"""Post-training quantisation: trained tables in fewer bits, for serving.

    fp16    float16 values
    int8    8 bits a value, and a float32 scale and bias a row: D + 8 bytes
    int4    4 bits a value, and a float16 scale and bias a row: D / 2 + 4 bytes
    int2    2 bits a value, likewise: D / 4 + 4 bytes

A table stays as it is where that would not make it smaller, as weights of width 1 would not be in
integers. So do projections, buffers, and what is stored in integers already. Parameters of computed
rows are packed in blocks, see `recemb.methods.packed_source`; formulas and rounding are those of
`recemb.tables.row_codes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from torch import Tensor

from recemb.methods.packed_source import packed
from recemb.tables.bounds import Bounds
from recemb.tables.computed import ComputedTables
from recemb.tables.joined import JoinedTables
from recemb.tables.lookup_plan import PhysicalTable, VirtualLookup
from recemb.tables.planned import PlannedTables
from recemb.tables.row_codes import Bits, code_bytes, encode_rows, header_dtype, to_half
from recemb.tables.tables import Tables

PostTraining = Literal["none", "fp16", "int8", "int4", "int2"]

_BITS: Mapping[PostTraining, Bits] = {"int8": 8, "int4": 4, "int2": 2}


def quantise_tables(tables: Tables, post: PostTraining, *, bounds: Bounds = "error") -> Tables:
    """Return the serving form of trained tables, in fewer bits.

    Args:
        tables: trained; they stay as they are.
        post: see the module.
        bounds: what happens to an id outside [0, num_embeddings).

    Raises:
        ValueError: on an unknown `post`, if the tables have no serving form, or if a value is too
            large for it.
    """
    if post not in get_args(PostTraining):
        raise ValueError(f"post must be one of {', '.join(get_args(PostTraining))}, got '{post}'")
    frozen = tables.freeze()
    if post == "none":
        return frozen
    if isinstance(frozen, JoinedTables):
        parts = {n: quantise_tables(frozen.part(n), post, bounds=bounds) for n in frozen.parts}
        return JoinedTables(frozen.specs, parts).eval()
    if isinstance(frozen, PlannedTables):
        return _planned(frozen, post, bounds)
    if isinstance(frozen, ComputedTables):
        return ComputedTables(
            frozen.specs,
            sources={
                name: packed(source, name, _BITS.get(post, 16))
                for name, source in frozen.sources.items()
            },
            source_of=frozen.source_of,
            planned=None if frozen.planned is None else _planned(frozen.planned, post, bounds),
            bounds=bounds,
        ).eval()
    raise ValueError(
        f"{type(frozen).__name__} cannot be quantised after training; set post=none, or let its "
        "freeze() return PlannedTables or ComputedTables"
    )


@dataclass
class _Parts:
    """What quantised tables are made of."""

    bits: Bits | None
    buffers: dict[str, Tensor]
    tables: list[PhysicalTable] = field(default_factory=list)
    initial: dict[str, Tensor] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)


def _planned(frozen: PlannedTables, post: PostTraining, bounds: Bounds) -> PlannedTables:
    parts = _Parts(bits=_BITS.get(post), buffers=dict(frozen.plan_buffers.items()))
    for table in frozen.plan.tables:
        try:
            _add(parts, table, frozen.table(table.name).detach())
        except ValueError as error:
            raise ValueError(f"table '{table.name}' cannot be {post}: {error}") from error
    outputs = (
        replace(
            output,
            lookups=tuple(_decoding(lookup, parts) for lookup in output.lookups),
            importance=None if output.importance is None else _decoding(output.importance, parts),
        )
        for output in frozen.plan.outputs
    )
    plan = replace(frozen.plan, tables=tuple(parts.tables), outputs=tuple(outputs))
    projections = {f"{name}.projection": t.detach() for name, t in frozen.projections.items()}
    made = PlannedTables(
        frozen.specs,
        plan,
        bounds=bounds,
        buffers=parts.buffers,
        initial={**parts.initial, **projections},
        device=next(iter(parts.initial.values())).device,
    )
    return made.without_training()


def _add(parts: _Parts, table: PhysicalTable, weight: Tensor) -> None:
    """Add a table and its weights (num_rows, width), as they are if that has the fewest bytes."""
    row_bytes = _row_bytes(table.width, parts.bits)
    if not weight.is_floating_point() or row_bytes >= table.width * weight.element_size():
        parts.tables.append(table)
        parts.initial[table.name] = weight
        return
    if parts.bits is None:
        parts.tables.append(replace(table, dtype="float16"))
        parts.initial[table.name] = to_half(weight)
        return
    coded = encode_rows(weight, parts.bits)
    parts.tables.append(replace(table, dtype="uint8", width=coded.codes.shape[1]))
    parts.initial[table.name] = coded.codes
    parts.buffers[_name(table.name, "scale")] = coded.scale
    parts.buffers[_name(table.name, "bias")] = coded.bias
    parts.widths[table.name] = table.width


def _decoding(lookup: VirtualLookup, parts: _Parts) -> VirtualLookup:
    """Return the lookup of a table that may be coded now."""
    if lookup.table not in parts.widths:
        return lookup
    if lookup.row.scale is not None or lookup.row.bias is not None:
        raise ValueError(f"table '{lookup.table}' cannot be quantised: its rows are scaled already")
    is_packed = parts.bits != 8
    row = replace(
        lookup.row,
        bits=parts.bits if is_packed else None,
        width=parts.widths[lookup.table] if is_packed else None,
        scale=_name(lookup.table, "scale"),
        bias=_name(lookup.table, "bias"),
    )
    return replace(lookup, row=row)


def _row_bytes(width: int, bits: Bits | None) -> int:
    """Return the bytes of a row; of float16 where `bits` is None."""
    if bits is None:
        return 2 * width
    return code_bytes(width, bits) + 2 * header_dtype(bits).itemsize


def _name(table: str, part: str) -> str:
    return f"{table}.{part}"
