"""Parsed rows to columns of the right type, with what does not fit named or left out.

Shapes: `n` rows of a chunk, `L` values of a multi-hot column over them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recemb.data.column import CategoricalColumn, Columns
from recemb.data.source import Chunk, OnBadLine, bad_line

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Values that do not fit.

    Attributes:
        mask: (n,) the rows that have one.
        column: the raw column.
        rule: what is wrong, to follow "which".
    """

    mask: Mask
    column: str
    rule: str


def checked(chunk: Chunk, columns: Columns, on_bad_line: OnBadLine) -> Chunk:
    """Return `chunk` with numbers where numbers are due, lists where lists are due.

    After this, every label is 0 or 1 (or any number, where there is a threshold), dense values are
    finite or null, values with encoding "ids" are in range, and lists have as many weights as
    values.

    Raises:
        ValueError: at the first row that does not fit, unless such rows are to be skipped.
    """
    table, problems = chunk.table, []
    for raw, convert in _conversions(columns).items():
        try:
            array, found = convert(raw, _whole(table.column(raw)))
        except ValueError as error:
            raise ValueError(f"{chunk.file}: {error}") from error
        table = table.set_column(table.column_names.index(raw), raw, array)
        problems += found
    for column in columns.categorical:
        problems += _list_problems(column, table)
    problems = [p for p in problems if p.mask.any()]
    if not problems:
        return replace(chunk, table=table)
    bad = np.logical_or.reduce([p.mask for p in problems])
    if on_bad_line == "raise":
        row = int(np.flatnonzero(bad)[0])
        problem = next(p for p in problems if p.mask[row])
        value = chunk.table.column(problem.column)[row].as_py()
        said = "is missing" if value is None else f"has value {str(value)!r}"
        raise bad_line(
            chunk.file,
            int(chunk.lines[row]),
            f"column '{problem.column}' {said}, which {problem.rule}",
        )
    skipped = chunk.num_skipped.copy()
    counted = np.zeros(len(bad), bool)
    for p in problems:
        skipped[f"column '{p.column}' {p.rule}"] += int((p.mask & ~counted).sum())
        counted |= p.mask
    skipped += type(skipped)()  # drops zeros
    return replace(replace(chunk, table=table).keep(~bad), num_skipped=skipped)


_Convert = Callable[[str, pa.Array], tuple[pa.Array, list[_Problem]]]


def _conversions(columns: Columns) -> dict[str, _Convert]:
    """Return what to do with each raw column."""
    label = columns.label
    found: dict[str, _Convert] = {
        label.name: lambda raw, array: _label(raw, array, label.threshold is None)
    }
    for dense in columns.dense:
        found.setdefault(dense.raw, _dense)
    for c in columns.categorical:
        if c.is_multi_hot:
            found.setdefault(c.raw, _lists(c.separator, c, is_weights=False))
            if c.weights is not None:
                found.setdefault(c.weights, _lists(c.separator, c, is_weights=True))
        elif c.transform == "buckets":
            found.setdefault(c.raw, _dense)
        elif c.encoding == "ids":
            found[c.raw] = _ids(c.num_embeddings or 0)
        else:
            found.setdefault(c.raw, _value)
    if columns.group is not None:
        known = found.get(columns.group, _value)
        found[columns.group] = _present(known)
    return found


def _label(raw: str, array: pa.Array, is_binary: bool) -> tuple[pa.Array, list[_Problem]]:
    numbers, problems = _number(raw, array, pa.float64())
    values = numbers.to_numpy(zero_copy_only=False)
    if is_binary:
        wrong = ~((values == 0) | (values == 1))
        return numbers, [
            *problems,
            _Problem(mask=wrong, column=raw, rule="is not a label (0 or 1)"),
        ]
    return numbers, [*problems, _Problem(mask=np.isnan(values), column=raw, rule="is not a label")]


def _dense(raw: str, array: pa.Array) -> tuple[pa.Array, list[_Problem]]:
    numbers, problems = _number(raw, array, pa.float64())
    infinite = np.isinf(numbers.to_numpy(zero_copy_only=False))
    return numbers, [*problems, _Problem(mask=infinite, column=raw, rule="is not finite")]


def _ids(num_embeddings: int) -> _Convert:
    def convert(raw: str, array: pa.Array) -> tuple[pa.Array, list[_Problem]]:
        numbers, problems = _number(raw, array, pa.int64())
        values = numbers.fill_null(-1).to_numpy()
        outside = (values < 0) | (values >= num_embeddings)
        rule = f"is not an id in [0, {num_embeddings})"
        return numbers, [*problems, _Problem(mask=outside, column=raw, rule=rule)]

    return convert


def _value(raw: str, array: pa.Array) -> tuple[pa.Array, list[_Problem]]:
    """Return strings, dictionaries of strings, or int64."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return array, []
    if pa.types.is_temporal(kind):
        return array.cast(pa.int64()) if kind.bit_width == 64 else array.cast(pa.int32()), []
    return _number(raw, array, pa.int64())


def _present(convert: _Convert) -> _Convert:
    def with_check(raw: str, array: pa.Array) -> tuple[pa.Array, list[_Problem]]:
        values, problems = convert(raw, array)
        is_null = values.is_null().to_numpy(zero_copy_only=False)
        rule = "cannot be: examples need a group"
        return values, [*problems, _Problem(mask=is_null, column=raw, rule=rule)]

    return with_check


def _lists(separator: str, column: CategoricalColumn, *, is_weights: bool) -> _Convert:
    """Return a conversion to lists of float32 (weights), int64 (ids) or strings and integers."""

    def convert(raw: str, array: pa.Array) -> tuple[pa.Array, list[_Problem]]:
        lists = _as_lists(array, separator)
        flat = lists.flatten()
        problems: list[_Problem] = []
        if is_weights:
            flat, problems = _number(raw, flat, pa.float64())
        elif column.encoding == "ids":
            flat, problems = _ids(column.num_embeddings or 0)(raw, flat)
        elif column.kind == "int":
            flat, problems = _number(raw, flat, pa.int64())
        else:
            flat, problems = _value(raw, flat)
        parents = pc.list_parent_indices(lists).to_numpy()
        if is_weights:
            bad = ~np.isfinite(flat.to_numpy(zero_copy_only=False))
            problems.append(
                _Problem(mask=bad, column=raw, rule="holds a weight that is not finite")
            )
            flat = flat.cast(pa.float32())
        by_row = [replace(p, mask=_any_of(p.mask, parents, len(lists))) for p in problems]
        lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        return pa.LargeListArray.from_arrays(offsets, flat), by_row

    return convert


def _as_lists(array: pa.Array, separator: str) -> pa.Array:
    """Return a list array; text is cut at `separator`, an empty text is an empty list."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        is_empty = pc.equal(array, "")
        return pc.split_pattern(pc.if_else(is_empty, None, array), separator)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return array
    return pa.ListArray.from_arrays(np.arange(len(array) + 1, dtype=np.int32), array)


def _list_problems(column: CategoricalColumn, table: pa.Table) -> list[_Problem]:
    if not column.is_multi_hot or column.weights is None:
        return []
    num_values = pc.list_value_length(_whole(table.column(column.raw))).to_numpy()
    num_weights = pc.list_value_length(_whole(table.column(column.weights))).to_numpy()
    rule = f"has not as many weights as '{column.raw}' has values"
    return [_Problem(mask=num_values != num_weights, column=column.weights, rule=rule)]


def _number(raw: str, array: pa.Array, kind: Any) -> tuple[pa.Array, list[_Problem]]:
    """Return `array` as numbers of type `kind`, with null where a value is none."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = pc.utf8_trim_whitespace(array)
        array = pc.if_else(pc.equal(array, ""), None, array)
    if pa.types.is_floating(array.type):  # pandas writes integers with gaps as floats with NaN
        array = pc.if_else(pc.is_nan(array), None, array)
    what = "is not a number" if pa.types.is_floating(kind) else "is not a whole number"
    try:
        return array.cast(kind), []
    except pa.ArrowNotImplementedError as error:
        raise ValueError(
            f"column '{raw}' has type {array.type}, but a number is needed ({error}); "
            "describe the column otherwise"
        ) from error
    except pa.ArrowInvalid:
        pass
    mask, numbers = np.zeros(len(array), bool), []
    for i, value in enumerate(array):
        try:
            numbers.append(value.cast(kind).as_py())
        except pa.ArrowInvalid:
            numbers.append(None)
            mask[i] = True
    return pa.array(numbers, kind), [_Problem(mask=mask, column=raw, rule=what)]


def _any_of(mask: Mask, parents: NDArray[np.int64], num_rows: int) -> Mask:
    """Return which rows (n,) have a value where `mask` (L,) holds."""
    rows = np.zeros(num_rows, bool)
    rows[parents[mask]] = True
    return rows


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Return the column as one array."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return column.combine_chunks() if column.num_chunks else pa.array([], column.type)
