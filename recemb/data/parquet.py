"""Parquet files and tables in memory as sources."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recemb.data.column import Kind
from recemb.data.source import Block, Chunk, Derivation, OnBadLine, Source

ROWS_PER_BLOCK = 1 << 16


class ParquetFiles(Source):
    """Parquet files with one example per row.

    Only the columns asked for are read. Memory: one row group of those columns, as Parquet stores
    it, and `rows_per_block` rows for each thread.

    Args:
        files: the files, in order.
        derivation: further columns.
        rows_per_block: rows handled at a time.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        derivation: Derivation | None = None,
        rows_per_block: int = ROWS_PER_BLOCK,
    ) -> None:
        self.files = tuple(files)
        self.derivation = derivation
        self.rows_per_block = rows_per_block

    def settings(self) -> dict[str, Any]:
        """Return all that the rows depend on besides the files' contents."""
        return {
            "format": "parquet",
            "derivation": self.derivation.name if self.derivation else None,
        }

    def blocks(self, columns: Collection[str] | None = None) -> Iterator[Block]:
        """Yield the rows of all files in order, with `columns` or all columns."""
        first_row = 0
        for file in self.files:
            opened = _open(file)
            num_rows = opened.metadata.num_rows
            if num_rows == 0:
                raise ValueError(f"{file}: the file has no rows; replace it or leave it out")
            _check_columns(file, opened.schema_arrow.names, columns or ())
            names = None if columns is None else list(columns)
            size, done = file.stat().st_size, 0
            try:
                for batch in opened.iter_batches(self.rows_per_block, columns=names):
                    share = size * batch.num_rows // num_rows
                    yield Block(
                        file=file,
                        first_line=done + 1,
                        first_row=first_row + done,
                        num_bytes=share,
                        data=pa.Table.from_batches([batch]),
                    )
                    done += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise ValueError(
                    f"{file}: the file is damaged after row {done} ({error}); fetch it again"
                ) from error
            first_row += num_rows

    def num_rows(self) -> int:
        """Return the number of rows; reads the files' footers only."""
        return sum(_open(f).metadata.num_rows for f in self.files)

    def parse(self, block: Block, kinds: Mapping[str, Kind], on_bad_line: OnBadLine) -> Chunk:
        """Return the rows of `block`; types are settled later, see `recemb.data.check`."""
        return _parsed(block, kinds)


class ArrowTables(Source):
    """Tables in memory, for formats that a data set reads on its own.

    Args:
        tables: one table per file.
        files: where each comes from: named in errors and watched for changes.
        format_name: names the rules by which the tables were made; change it with them.
        rows_per_block: rows handled at a time.
    """

    derivation = None

    def __init__(
        self,
        tables: Sequence[pa.Table],
        *,
        files: Sequence[Path],
        format_name: str,
        rows_per_block: int = ROWS_PER_BLOCK,
    ) -> None:
        if len(tables) != len(files):
            raise ValueError(
                f"arrow source: there are {len(tables)} tables for {len(files)} files; give each "
                "table its file"
            )
        self.tables = tuple(tables)
        self.files = tuple(files)
        self.format_name = format_name
        self.rows_per_block = rows_per_block

    def settings(self) -> dict[str, Any]:
        """Return all that the rows depend on besides the files' contents."""
        return {"format": self.format_name}

    def blocks(self, columns: Collection[str] | None = None) -> Iterator[Block]:
        """Yield the rows of all tables in order."""
        first_row = 0
        for table, file in zip(self.tables, self.files, strict=True):
            for start in range(0, table.num_rows, self.rows_per_block):
                part = table.slice(start, self.rows_per_block)
                yield Block(
                    file=file,
                    first_line=start + 1,
                    first_row=first_row + start,
                    num_bytes=file.stat().st_size * part.num_rows // table.num_rows,
                    data=part,
                )
            first_row += table.num_rows

    def num_rows(self) -> int:
        """Return the number of rows."""
        return sum(t.num_rows for t in self.tables)

    def parse(self, block: Block, kinds: Mapping[str, Kind], on_bad_line: OnBadLine) -> Chunk:
        """Return the rows of `block`; types are settled later, see `recemb.data.check`."""
        return _parsed(block, kinds)


def _parsed(block: Block, kinds: Mapping[str, Kind]) -> Chunk:
    table: pa.Table = block.data
    _check_columns(block.file, table.column_names, kinds)
    places = np.arange(table.num_rows, dtype=np.int64)
    return Chunk(
        table=table.select(list(kinds)).combine_chunks(),
        file=block.file,
        lines=block.first_line + places,
        rows=block.first_row + places,
    )


def _check_columns(file: Path, names: Sequence[str], wanted: Collection[str]) -> None:
    if lacking := [c for c in wanted if c not in names]:
        raise ValueError(f"{file}: there is no column {lacking}; the file has {list(names)}")


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{file}: this is not a readable Parquet file ({error}); fetch or write it again"
        ) from error
