"""Rows as they were read, with one more column: what a model makes of them."""

import abc
import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recemb.data.raw_rows import RawRows, line_places
from recemb.data.source import Block
from recemb.data.text import DelimitedText

COLUMN = "probability"


class ScoredRows(abc.ABC):
    """Writes rows with a last column `probability`; empty where a row could not be scored."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @abc.abstractmethod
    def write(self, block: Block, probabilities: NDArray[np.float32]) -> None:
        """Write the rows (n,) of a block; NaN stands for a row that could not be scored."""

    @abc.abstractmethod
    def close(self) -> None:
        """Finish the file."""


def scored_rows(rows: RawRows, out: Path, name: str) -> ScoredRows:
    """Return what writes `rows` to `out` in the format in which they were read.

    Args:
        rows: the rows.
        out: the file to write.
        name: the name that the file is to have in the end; one that ends in .gz is compressed.

    Raises:
        ValueError: if the name is that of another format, or there is such a column already.
    """
    is_text, source = isinstance(rows.source, DelimitedText), rows.source
    names_parquet = name.lower().endswith((".parquet", ".pq"))
    if is_text == names_parquet:
        found, wanted = ("text", ".csv or .tsv") if is_text else ("Parquet", ".parquet")
        raise ValueError(
            f"{name}: the rows are {found} and are written as such; end the name in {wanted}"
        )
    if isinstance(source, DelimitedText):
        return _ScoredText(out, source, is_packed=name.lower().endswith(".gz"))
    return _ScoredParquet(out)


class _ScoredText(ScoredRows):
    """Lines byte for byte, the delimiter, and the shortest number that reads back the same."""

    def __init__(self, out: Path, source: DelimitedText, *, is_packed: bool) -> None:
        self._source = source
        self._needs_header = source.column_names is None
        self._raw = out.open("wb")
        self._file: io.BufferedIOBase = self._raw
        if is_packed:
            self._file = gzip.GzipFile(filename="", mode="wb", fileobj=self._raw, mtime=0)

    def write(self, block: Block, probabilities: NDArray[np.float32]) -> None:
        names, data = block.data
        if self._needs_header:
            _check_names(block.file, names)
            self._file.write(self._header(names))
            self._needs_header = False
        lines, delimiter = data.split(b"\n"), self._source.delimiter.encode()
        written = []
        for place, text in zip(line_places(data), _texts(probabilities), strict=True):
            line = lines[place]
            end = b"\r\n" if line.endswith(b"\r") else b"\n"
            written.append(line.removesuffix(b"\r") + delimiter + text + end)
        self._file.write(b"".join(written))

    def close(self) -> None:
        self._file.close()
        self._raw.close()

    def _header(self, names: Sequence[str]) -> bytes:
        delimiter, quote = self._source.delimiter, self._source.quote
        if quote is None or len(delimiter) > 1:
            return (delimiter.join([*names, COLUMN]) + "\n").encode(self._source.encoding)
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, quotechar=quote, lineterminator="\n").writerow(
            [*names, COLUMN]
        )
        return text.getvalue().encode(self._source.encoding)


class _ScoredParquet(ScoredRows):
    def __init__(self, out: Path) -> None:
        self._out = out
        self._writer: pq.ParquetWriter | None = None

    def write(self, block: Block, probabilities: NDArray[np.float32]) -> None:
        table: pa.Table = block.data
        _check_names(block.file, table.column_names)
        column = pa.array(probabilities, pa.float32(), mask=np.isnan(probabilities))
        table = table.append_column(COLUMN, column)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._out, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _texts(probabilities: NDArray[np.float32]) -> list[bytes]:
    texts = pa.array(probabilities, pa.float32()).cast(pa.string()).to_pylist()
    return [b"" if text == "nan" else text.encode() for text in texts]


def _check_names(file: Path, names: Sequence[str]) -> None:
    if COLUMN in names:
        raise ValueError(f"{file}: there is a column '{COLUMN}' already; rename or remove it")
