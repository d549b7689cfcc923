"""Raw files as a stream of chunks of bounded size.

A source cuts its files into blocks, in order and cheaply (`blocks`), and parses a block into a
chunk (`parse`), which several threads do at once.
"""

import abc
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recemb.data.column import Kind

OnBadLine = Literal["raise", "skip"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A piece of one file, not yet parsed.

    Attributes:
        file: the file.
        first_line: number of its first line in the file, from 1 (rows count for Parquet).
        first_row: number of its first line over all files, from 0.
        num_bytes: how far the file has been read with it, for the progress bar.
        data: the bytes (text) or the table (Parquet).
    """

    file: Path
    first_line: int
    first_row: int
    num_bytes: int
    data: Any


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Parsed rows.

    Attributes:
        table: (n) rows of raw columns.
        file: where they come from.
        lines: (n,) their line numbers in the file, from 1.
        rows: (n,) their numbers over all files, from 0; what is skipped leaves gaps.
        num_skipped: lines left out of this chunk, by reason.
    """

    table: pa.Table
    file: Path
    lines: NDArray[np.int64]
    rows: NDArray[np.int64]
    num_skipped: Counter[str] = field(default_factory=Counter)

    def keep(self, mask: NDArray[np.bool_]) -> "Chunk":
        """Return the rows where `mask` (n,) holds."""
        if mask.all():
            return self
        return replace(
            self,
            table=self.table.filter(pa.array(mask)),
            lines=self.lines[mask],
            rows=self.rows[mask],
        )


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """Columns computed from raw ones while reading.

    Attributes:
        name: changes when the rule changes, so that old prepared data are noticed.
        inputs: raw columns that the rule reads, and how.
        outputs: columns that it adds.
        apply: returns the table with the outputs; keeps number and order of rows.
        keep: returns a boolean (n,) of the rows to use at all, or None for all; the others count as
            neither bad nor read.
        files: further raw files that the rule reads, such as users' attributes; watched for changes
            like the source's own.
    """

    name: str
    inputs: Mapping[str, Kind]
    outputs: tuple[str, ...]
    apply: Callable[[pa.Table], pa.Table]
    keep: Callable[[pa.Table], NDArray[np.bool_]] | None = None
    files: tuple[Path, ...] = ()


class Source(abc.ABC):
    """Raw files of one format.

    Attributes:
        files: in the order in which they are read.
        derivation: further columns, or None.
    """

    files: tuple[Path, ...]
    derivation: Derivation | None

    @abc.abstractmethod
    def blocks(self, columns: Collection[str] | None = None) -> Iterator[Block]:
        """Yield the pieces of all files in order.

        Args:
            columns: raw columns that `parse` will be asked for; None is all. Formats that store
                columns apart read no others.

        Raises:
            ValueError: if a file is empty, truncated or not of this format.
        """

    @abc.abstractmethod
    def parse(self, block: Block, kinds: Mapping[str, Kind], on_bad_line: OnBadLine) -> Chunk:
        """Return the rows of `block` with the raw columns `kinds`; safe to call from threads.

        Raises:
            ValueError: if a column does not exist, or on a bad line with `on_bad_line` "raise".
        """

    @abc.abstractmethod
    def num_rows(self) -> int:
        """Return one more than the largest row number; may have to read the files."""

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return all that the rows depend on besides the files' contents; plain JSON types."""

    def total_bytes(self) -> int:
        """Return the size of all files."""
        return sum(f.stat().st_size for f in self.files)

    def raw_kinds(self, kinds: Mapping[str, Kind]) -> dict[str, Kind]:
        """Return the columns that must be read from the files so that `kinds` can be given."""
        rule = self.derivation
        if rule is None:
            return dict(kinds)
        return {**{c: k for c, k in kinds.items() if c not in rule.outputs}, **rule.inputs}

    def chunks(self, kinds: Mapping[str, Kind], on_bad_line: OnBadLine) -> Iterator[Chunk]:
        """Yield the rows of all files with the columns `kinds`."""
        for block in self.blocks(self.raw_kinds(kinds)):
            yield self.chunk(block, kinds, on_bad_line)

    def chunk(self, block: Block, kinds: Mapping[str, Kind], on_bad_line: OnBadLine) -> Chunk:
        """Return the rows of `block` with the columns `kinds`, derived ones included."""
        chunk = self.parse(block, self.raw_kinds(kinds), on_bad_line)
        rule = self.derivation
        if rule is None:
            return chunk
        if rule.keep is not None:
            chunk = chunk.keep(rule.keep(chunk.table))
        return replace(chunk, table=rule.apply(chunk.table))


def bad_line(file: Path, line: int, what: str) -> ValueError:
    """Return the error about a line of a raw file."""
    return ValueError(
        f"{file}:{line}: {what}; correct the line, or leave such lines out with on_bad_line=skip"
    )


def missing_file(data: str, path: Path, way_out: str) -> FileNotFoundError:
    """Return the error about a raw file that is not there."""
    return FileNotFoundError(f"data '{data}': {path} does not exist; {way_out}")
