"""Delimited text, plain or .gz, as a source.

pyarrow's C++ reader parses each block. Only when it refuses one are that block's lines looked at
one by one, to say which line, column and value is wrong, or to leave those lines out.
"""

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from recemb.data.column import Kind
from recemb.data.source import Block, Chunk, Derivation, OnBadLine, Source, bad_line

BLOCK_BYTES = 1 << 24
_MAX_LINE_BYTES = 1 << 26
_GZIP_MAGIC = b"\x1f\x8b"
_UNIT_SEPARATOR = "\x1f"
_INT = re.compile(r"-?\d+")
_FLOAT = re.compile(r"-?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf|infinity|nan)", re.I)
_PARSE_BYTES = 1 << 20  # what pyarrow parses at a time: its columns then stay in the cache
_ARROW_TYPES: dict[Kind, Any] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
}


class DelimitedText(Source):
    """Text files with one example per line.

    A value cannot contain a line break, quoted or not. Memory: about ten times `block_bytes` for
    each thread that parses.

    Args:
        files: the files, in order; .gz is recognised by its content.
        delimiter: one or several characters.
        column_names: for files without a header; None reads the names from the first line of each.
        quote: the quoting character, or None where quotes are ordinary characters.
        null_values: texts that mean "missing".
        encoding: of the text; other than UTF-8 is converted while reading.
        derivation: further columns.
        block_bytes: bytes of (unpacked) text parsed at a time.

    Raises:
        ValueError: if there is no file.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        delimiter: str = ",",
        column_names: Sequence[str] | None = None,
        quote: str | None = '"',
        null_values: Sequence[str] = ("",),
        encoding: str = "utf-8",
        derivation: Derivation | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        if not delimiter:
            raise ValueError("text source: delimiter must not be empty")
        self.files = tuple(files)
        self.delimiter = delimiter
        self.column_names = None if column_names is None else tuple(column_names)
        self.quote = quote
        self.null_values = tuple(null_values)
        self.encoding = encoding
        self.derivation = derivation
        self.block_bytes = block_bytes

    def settings(self) -> dict[str, Any]:
        """Return all that the rows depend on besides the files' contents."""
        return {
            "format": "text",
            "delimiter": self.delimiter,
            "column_names": None if self.column_names is None else list(self.column_names),
            "quote": self.quote,
            "null_values": list(self.null_values),
            "encoding": self.encoding,
            "derivation": self.derivation.name if self.derivation else None,
        }

    def blocks(self, columns: Collection[str] | None = None) -> Iterator[Block]:
        """Yield pieces of whole lines; each carries its file's column names."""
        first_row = 0
        for file in self.files:
            with _opened(file) as (stream, position):
                names, header_lines = self._names(file, stream)
                line, done = 1 + header_lines, 0
                for data in _whole_lines(file, stream, self.block_bytes):
                    at = position()
                    num_lines = data.count(b"\n") + (not data.endswith(b"\n"))
                    yield Block(
                        file=file,
                        first_line=line,
                        first_row=first_row,
                        num_bytes=at - done,
                        data=(names, data),
                    )
                    line, first_row, done = line + num_lines, first_row + num_lines, at
                if line == 1 + header_lines:
                    what = "has a header but no rows" if header_lines else "is empty"
                    raise ValueError(f"{file}: the file {what}; replace it or leave it out")

    def num_rows(self) -> int:
        """Return the number of lines, headers excluded; reads all files."""
        last = 0
        for block in self.blocks():
            data = block.data[1]
            last = block.first_row + data.count(b"\n") + (not data.endswith(b"\n"))
        return last

    def parse(self, block: Block, kinds: Mapping[str, Kind], on_bad_line: OnBadLine) -> Chunk:
        """Return the rows of `block`."""
        names, data = block.data
        if lacking := [c for c in kinds if c not in names]:
            raise ValueError(
                f"{block.file}: there is no column {lacking}; the file has {list(names)}"
            )
        try:
            data = self._as_utf8(data)
            table = self._read(names, data, kinds)
            places = _filled_lines(data, table.num_rows)
            _check_num_rows(table, places)
            return _chunk(block, table, places, Counter())
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            good, places, skipped = self._scan(block, kinds, on_bad_line)
            try:
                table = self._read(names, good, kinds)
                _check_num_rows(table, places)
            except pa.ArrowInvalid:
                last = block.first_line + data.count(b"\n")
                raise bad_line(
                    block.file, block.first_line, f"up to line {last}: {error}"
                ) from None
            return _chunk(block, table, places, skipped)

    def _names(self, file: Path, stream: IO[bytes]) -> tuple[tuple[str, ...], int]:
        """Return the column names and how many header lines were read."""
        if self.column_names is not None:
            return self.column_names, 0
        with _reading(file):
            line = stream.readline(_MAX_LINE_BYTES)
        if not line.strip():
            raise ValueError(f"{file}: the file is empty; replace it or leave it out")
        try:
            text = line.decode(self.encoding).removeprefix("\ufeff").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file}:1: the header is not {self.encoding} ({error}); "
                "convert the file or set encoding"
            ) from None
        names = tuple(self._fields(text))
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"{file}:1: the header names {repeated} twice; rename one of each")
        return names, 1

    def _read(self, names: Sequence[str], data: bytes, kinds: Mapping[str, Kind]) -> pa.Table:
        if not data.strip(b"\r\n"):
            return pa.table({c: pa.array([], _ARROW_TYPES[k]) for c, k in kinds.items()})
        delimiter = self.delimiter
        if len(delimiter) > 1:  # pyarrow knows delimiters of one character only
            data = data.replace(delimiter.encode(), _UNIT_SEPARATOR.encode())
            delimiter = _UNIT_SEPARATOR
        try:
            return self._parse(names, data, kinds, delimiter, _PARSE_BYTES)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
            # A line is longer than what is parsed at a time.
            return self._parse(names, data, kinds, delimiter, len(data) + 1)

    def _parse(
        self,
        names: Sequence[str],
        data: bytes,
        kinds: Mapping[str, Kind],
        delimiter: str,
        num_bytes: int,
    ) -> pa.Table:
        return arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(
                column_names=list(names), use_threads=False, block_size=num_bytes
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter, quote_char=self.quote or False
            ),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(kinds),
                column_types={c: _ARROW_TYPES[k] for c, k in kinds.items()},
                null_values=list(self.null_values),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        ).combine_chunks()

    def _as_utf8(self, data: bytes) -> bytes:
        if self.encoding.lower().replace("-", "") in ("utf8", "ascii"):
            return data
        return data.decode(self.encoding).encode()

    def _fields(self, text: str) -> list[str]:
        if self.quote is None or self.quote not in text or len(self.delimiter) > 1:
            return text.split(self.delimiter)
        return next(csv.reader([text], delimiter=self.delimiter, quotechar=self.quote))

    def _is_unclosed(self, text: str) -> bool:
        if self.quote is None or self.quote not in text or len(self.delimiter) > 1:
            return False
        reader = csv.reader([text], delimiter=self.delimiter, quotechar=self.quote, strict=True)
        try:
            next(reader)
        except csv.Error as error:
            return "unexpected end" in str(error)
        return False

    def _scan(
        self, block: Block, kinds: Mapping[str, Kind], on_bad_line: OnBadLine
    ) -> tuple[bytes, NDArray[np.int64], Counter[str]]:
        """Return the good lines, their places in the block, and how many others there are.

        Raises:
            ValueError: at the first bad line, unless they are to be skipped.
        """
        names, data = block.data
        good, places, skipped = [], [], Counter[str]()
        for i, line in enumerate(data.split(b"\n")):
            line = line.removesuffix(b"\r")
            if not line:
                continue
            if (problem := self._problem(line, names, kinds)) is None:
                good.append(line.decode(self.encoding).encode())
                places.append(i)
            elif on_bad_line == "raise":
                raise bad_line(block.file, block.first_line + i, problem[1])
            else:
                skipped[problem[0]] += 1
        return b"\n".join(good), np.array(places, np.int64), skipped

    def _problem(
        self, line: bytes, names: Sequence[str], kinds: Mapping[str, Kind]
    ) -> tuple[str, str] | None:
        """Return the reason and the sentence on what is wrong with a line, or None."""
        try:
            text = line.decode(self.encoding)
        except UnicodeDecodeError as error:
            column = line[: error.start].count(self.delimiter.encode())
            name = names[column] if column < len(names) else f"number {column + 1}"
            return f"not {self.encoding}", (
                f"column '{name}' has the bytes {line[error.start : error.start + 8]!r}, "
                f"which are not {self.encoding}"
            )
        fields = self._fields(text)
        if self._is_unclosed(text):
            name = names[min(len(fields), len(names)) - 1]
            return "quote not closed", (
                f"column '{name}' opens a quote that the line does not close "
                f"({fields[-1][:40]!r}; a value cannot contain a line break)"
            )
        if len(fields) != len(names):
            return "wrong number of columns", (
                f"the line has {len(fields)} columns instead of {len(names)} "
                f"(column '{names[min(len(fields), len(names)) - 1]}' is the last that both have, "
                f"with value {fields[min(len(fields), len(names)) - 1][:40]!r})"
            )
        for name, value in zip(names, fields, strict=True):
            if name in kinds and (why := self._why_not(value, kinds[name])):
                return f"column '{name}' {why}", f"column '{name}' has value {value!r}, which {why}"
        return None

    def _why_not(self, value: str, kind: Kind) -> str | None:
        """Return why `value` is not of `kind`, or None if it is or is missing."""
        if kind == "string" or value in self.null_values:
            return None
        if kind == "float":
            return None if _FLOAT.fullmatch(value.strip()) else "is not a number"
        if not _INT.fullmatch(value.strip()):
            return "is not a whole number"
        return None if -(2**63) <= int(value) < 2**63 else "does not fit into 64 bits"


def _chunk(
    block: Block, table: pa.Table, places: NDArray[np.int64], skipped: Counter[str]
) -> Chunk:
    return Chunk(
        table=table,
        file=block.file,
        lines=block.first_line + places,
        rows=block.first_row + places,
        num_skipped=skipped,
    )


def _check_num_rows(table: pa.Table, places: NDArray[np.int64]) -> None:
    """Raise ArrowInvalid if a value has a line break, so that rows are not lines."""
    if table.num_rows != len(places):
        raise pa.ArrowInvalid("a value contains a line break")


def _filled_lines(data: bytes, num_rows: int) -> NDArray[np.int64]:
    """Return the places of the lines that are not blank, which are the rows."""
    if data.count(b"\n") + (not data.endswith(b"\n")) == num_rows:
        return np.arange(num_rows, dtype=np.int64)
    filled = [i for i, line in enumerate(data.split(b"\n")) if line.strip(b"\r")]
    return np.array(filled, np.int64)


@contextmanager
def _opened(file: Path) -> Iterator[tuple[IO[bytes], Any]]:
    """Give the unpacked stream of `file` and a function that says how far the file was read."""
    with file.open("rb") as raw:
        is_packed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        raw.seek(0)
        if not is_packed:
            yield raw, raw.tell
            return
        with gzip.GzipFile(fileobj=cast(BinaryIO, raw)) as unpacked:
            yield cast(IO[bytes], unpacked), raw.tell


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what a damaged .gz raises into an error that says so."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{file}: the compressed file is truncated or damaged ({error}); fetch it again"
        ) from error


def _whole_lines(file: Path, stream: IO[bytes], block_bytes: int) -> Iterator[bytes]:
    """Yield the rest of `stream` in pieces of about `block_bytes` that end with a line."""
    rest = b""
    while True:
        with _reading(file):
            data = stream.read(block_bytes)
        if not data:
            break
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end]
            rest = data[end:]
        else:
            rest += data
        if len(rest) > _MAX_LINE_BYTES + block_bytes:
            raise ValueError(
                f"{file}: a line is longer than {_MAX_LINE_BYTES} bytes; is this a text file?"
            )
    if rest:
        yield rest
