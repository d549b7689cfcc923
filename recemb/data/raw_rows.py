"""Raw rows of one file for a trained model: encoded as its data were, with no label needed."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recemb.data.assembly import batch_of
from recemb.data.avazu import calendar
from recemb.data.batch import Batch
from recemb.data.check import checked
from recemb.data.column import CategoricalColumn, Columns, DenseColumn, Kind, LabelColumn
from recemb.data.encoder import RowEncoder
from recemb.data.parquet import ParquetFiles
from recemb.data.raw_histories import RawHistories
from recemb.data.schema import Schema
from recemb.data.source import Block, Chunk, OnBadLine, Source
from recemb.data.text import DelimitedText

TEXT_KEYS = ("delimiter", "column_names", "quote", "null_values", "encoding")
"""The settings of `DelimitedText` that say how a file is to be read."""

_PARQUET_ENDINGS = (".parquet", ".pq")
_TAB_ENDINGS = (".tsv", ".tab", ".tsv.gz", ".tab.gz")
_NO_LABEL = "\x00no label"


@dataclass(frozen=True, kw_only=True)
class RawBlock:
    """Some rows of the file.

    Attributes:
        block: as read.
        is_good: (n,) which of its rows could be encoded.
        table: those rows, checked.
    """

    block: Block
    is_good: NDArray[np.bool_]
    table: pa.Table


class RawRows:
    """The rows of one file, block by block.

    A column of labels, and one that GAUC would group by, may be there or not; they are not read.

    Args:
        path: delimited text, plain or .gz, or Parquet, by its ending.
        encoder: that of the training data.
        trained_on: how the training data were read, the settings of their `Source`.
        text: settings of `DelimitedText` that differ from those; a file that ends in .tsv or .tab
            has tabs anyway.
        on_bad_line: "raise" at the first row that does not fit, or "skip" such rows.
        histories: what becomes of lists of earlier behaviours; None where the model reads none.

    Attributes:
        source: reads the file.
        schema: the features.
        columns: how they come from the raw columns.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing, or strings could not be told from numbers.
    """

    def __init__(
        self,
        path: Path,
        encoder: RowEncoder,
        *,
        trained_on: Mapping[str, Any],
        text: Mapping[str, Any] | None = None,
        on_bad_line: OnBadLine = "raise",
        histories: RawHistories | None = None,
    ) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; name a file of raw rows")
        if on_bad_line not in ("raise", "skip"):
            raise ValueError(f"on_bad_line must be raise or skip, got '{on_bad_line}'")
        self.columns = replace(encoder.columns, label=LabelColumn(name=_NO_LABEL), group=None)
        self._encoder = RowEncoder(
            self.columns,
            vocabularies=encoder.vocabularies,
            moments=encoder.moments,
            seed=encoder.seed,
        )
        self.schema = self._encoder.schema
        self._histories = histories
        self._on_bad_line: OnBadLine = on_bad_line
        self._kinds = {raw: k for raw, k in self.columns.kinds().items() if raw != _NO_LABEL}
        was_text = trained_on.get("format") == "text"
        self.source = _source(path, trained_on, text or {}, encoder.columns.label.name)
        self._derive(trained_on.get("derivation"))
        is_text = isinstance(self.source, DelimitedText)
        strings = [c.raw for c in self.columns.categorical if _is_read_as_string(c)]
        self._to_strings = strings if was_text and not is_text else []
        if trained_on.get("format") == "parquet" and is_text and strings:
            raise ValueError(
                f"{path}: the model was trained on Parquet files, in which columns {strings} have "
                "types that text does not have; give the rows as Parquet with the same types"
            )

    def blocks(self) -> Iterator[RawBlock]:
        """Yield the file's rows in order; the number of a block's rows is bounded.

        Raises:
            ValueError: at the first row that does not fit, unless such rows are to be skipped.
        """
        for block in self.source.blocks():
            chunk = self.source.chunk(block, self._kinds, self._on_bad_line)
            table = chunk.table
            for raw in self._to_strings:
                place = table.column_names.index(raw)
                table = table.set_column(place, raw, _strings(table.column(raw).combine_chunks()))
            label = pa.array(np.zeros(table.num_rows))
            chunk = replace(chunk, table=table.append_column(_NO_LABEL, label))
            chunk = checked(chunk, self.columns, self._on_bad_line)
            if self._histories is not None:
                chunk = self._histories.whole(chunk, self._on_bad_line)
            yield RawBlock(block=block, is_good=_good_rows(block, chunk), table=chunk.table)

    def batches(self, block: RawBlock, batch_size: int) -> Iterator[Batch]:
        """Yield the good rows of a block as batches; their labels are zeros."""
        for start in range(0, block.table.num_rows, batch_size):
            rows = self._encoder.encode(block.table.slice(start, batch_size))
            if self._histories is None:
                yield batch_of(rows, self.schema)
            else:
                yield self._histories.batch(rows)

    def _derive(self, rule: str | None) -> None:
        """Make the columns that the training data derived, or see that they are all there.

        Raises:
            ValueError: naming those that are missing.
        """
        names = _names(self.source)
        lacking = [raw for raw in self._kinds if raw not in names]
        known = {calendar().name: calendar()}
        if lacking and rule in known:
            self.source.derivation = known[rule]
            lacking = [raw for raw in self.source.raw_kinds(self._kinds) if raw not in names]
        if lacking:
            made = f" (preparation makes some columns, by '{rule}')" if rule else ""
            raise ValueError(
                f"{self.source.files[0]}: the model needs columns {lacking}, which are not "
                f"among {list(names)}{made}; add them, or say with text.delimiter and "
                "text.column_names how the file is to be read"
            )


def plain_encoder(schema: Schema) -> RowEncoder:
    """Return the encoder of data that have no raw form: ids are ids, numbers stay as they are."""
    columns = Columns(
        label=LabelColumn(name=schema.label),
        dense=tuple(DenseColumn(name=name) for name in schema.dense),
        categorical=tuple(
            CategoricalColumn(
                name=c.name,
                encoding="ids",
                num_embeddings=c.num_embeddings,
                is_multi_hot=c.is_multi_hot,
                weights=f"{c.name}_weights" if c.is_weighted else None,
            )
            for c in schema.categorical
        ),
    )
    return RowEncoder(columns, vocabularies={}, moments={}, seed=0)


def line_places(data: bytes) -> NDArray[np.int64]:
    """Return the numbers, from 0, of the lines that hold a row: those that are not blank."""
    lines = data.split(b"\n")
    return np.array([i for i, line in enumerate(lines) if line.strip(b"\r")], np.int64)


def _source(
    path: Path, trained_on: Mapping[str, Any], text: Mapping[str, Any], label: str
) -> DelimitedText | ParquetFiles:
    if unknown := sorted(text.keys() - set(TEXT_KEYS)):
        raise ValueError(f"text has no key {unknown}; it knows {list(TEXT_KEYS)}")
    if path.name.lower().endswith(_PARQUET_ENDINGS):
        return ParquetFiles([path])
    settings: dict[str, Any] = {}
    if trained_on.get("format") == "text":
        settings = {key: trained_on[key] for key in TEXT_KEYS if key in trained_on}
    if path.name.lower().endswith(_TAB_ENDINGS):
        settings["delimiter"] = "\t"
    source = DelimitedText([path], **{**settings, **text})
    names = source.column_names
    if names is not None and label in names and _width(source) == len(names) - 1:
        without = [name for name in names if name != label]
        source = DelimitedText([path], **{**settings, **text, "column_names": without})
    return source


def _width(source: DelimitedText) -> int:
    """Return the number of values in the first line of a file without a header."""
    data: bytes = next(iter(source.blocks())).data[1]
    line = data.lstrip(b"\r\n").split(b"\n", 1)[0].decode(source.encoding).rstrip("\r")
    if source.quote is None or len(source.delimiter) > 1:
        return line.count(source.delimiter) + 1
    return len(next(csv.reader([line], delimiter=source.delimiter, quotechar=source.quote)))


def _names(source: Source) -> Sequence[str]:
    """Return the columns of the file."""
    data = next(iter(source.blocks())).data
    names: Sequence[str] = data.column_names if isinstance(data, pa.Table) else data[0]
    return names


def _is_read_as_string(column: CategoricalColumn) -> bool:
    """Return whether a value's id depends on the type that the column has."""
    kind: Kind = column.kind if column.is_multi_hot else column.raw_kind
    return column.encoding != "ids" and kind == "string"


def _strings(array: pa.Array) -> pa.Array:
    """Return integers, also those that gaps have made floats, as text would have them."""
    kind = array.type
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_nan(array), None, array).cast(pa.int64())
    if pa.types.is_integer(array.type):
        return array.cast(pa.string())
    if pa.types.is_list(kind) and pa.types.is_integer(kind.value_type):
        return array.cast(pa.list_(pa.string()))
    return array


def _good_rows(block: Block, chunk: Chunk) -> NDArray[np.bool_]:
    """Return which rows (n,) of a block are among the chunk's."""
    numbers = chunk.lines - block.first_line
    if isinstance(block.data, pa.Table):
        places = np.arange(block.data.num_rows)
    else:
        places = line_places(block.data[1])
    return np.isin(places, numbers, assume_unique=True)
