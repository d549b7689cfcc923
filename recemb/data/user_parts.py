"""Behaviours of any number, brought together user by user on disk.

A log in order of time, or in none, is dealt by user into parts, each of which is then sorted in
memory: all behaviours of a user are in one part.

Shapes: `n` behaviours of a chunk or part.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from recemb.data.column import Kind
from recemb.data.encoder import keyed
from recemb.data.prefetch import ordered_map
from recemb.data.preparation import prepare_once
from recemb.data.prepared import Prepared
from recemb.data.source import Block, Chunk, OnBadLine, Source, bad_line
from recemb.data.user_log import KeyKind, Protocol, UserLog, write_samples
from recemb.ids.hashing import hash_rows

_DTYPE = np.dtype([("user", "<i8"), ("time", "<i8"), ("item", "<i8"), ("category", "<i8")])
_SEED = 0x5EED
_BYTES_PER_PART = 1 << 27
_NUM_THREADS = 2


class UserParts:
    """Behaviours on disk, dealt by user.

    Memory: one chunk while writing, one part while reading. Disk: 32 bytes per behaviour, freed on
    leaving the context.

    Args:
        folder: where to put them; on a disk with room.
        num_parts: parts; each must fit in memory, at about 100 bytes per behaviour.
    """

    def __init__(self, folder: Path, *, num_parts: int) -> None:
        self._scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".users-")
        self._paths = [Path(self._scratch.name) / str(p) for p in range(num_parts)]
        self._files: list[BinaryIO] = []

    def __enter__(self) -> Self:
        self._files = [path.open("wb") for path in self._paths]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()
        self._scratch.cleanup()

    def append(self, columns: Mapping[str, NDArray[np.int64]]) -> None:
        """Add behaviours: user, time, item and category, (n,) each."""
        rows = np.empty(len(columns["user"]), _DTYPE)
        for name in _DTYPE.names or ():
            rows[name] = columns[name]
        part = hash_rows(rows["user"].astype(np.int64), _SEED, len(self._files))
        rows = rows[np.argsort(part, kind="stable")]
        ends = np.cumsum(np.bincount(part, minlength=len(self._files)))
        for file, piece in zip(self._files, np.split(rows, ends[:-1]), strict=True):
            file.write(piece.tobytes())

    def logs(self) -> Iterator[UserLog]:
        """Yield the parts; behaviours of one time keep the order in which they came."""
        for file, path in zip(self._files, self._paths, strict=True):
            file.flush()
            rows = np.fromfile(path, _DTYPE)
            if len(rows):
                yield UserLog.sorted_from(
                    rows["user"], rows["time"], rows["item"], rows["category"]
                )


def prepare_log(
    data: str,
    source: Source,
    protocol: Protocol,
    out: Path,
    *,
    columns: Mapping[str, str],
    only: tuple[str, str] | None,
    on_bad_line: OnBadLine,
    overwrite: bool,
    keys: KeyKind = "int",
) -> Prepared:
    """Return the samples of a log's users in `out`, preparing them if needed.

    Args:
        data: the data set's name.
        source: the raw files.
        protocol: how samples are made.
        out: folder of the prepared set; beside it is room for the behaviours, 32 bytes each.
        columns: the raw columns of user, time, item and category.
        only: a raw column, and its value in the lines that count; None where all do.
        on_bad_line: "raise" at the first bad line, or "skip" and count them.
        overwrite: prepare again whatever is in `out`.
        keys: what users, items and categories are; times are whole numbers.

    Raises:
        FileNotFoundError: if a raw file is missing.
        ValueError: if a raw file is malformed, or no user has enough behaviours.
    """
    return prepare_parts(
        data,
        lambda parts: _deal(data, source, parts, _Columns(columns, only, keys), on_bad_line),
        protocol,
        out,
        settings={
            "source": source.settings(),
            "on_bad_line": on_bad_line,
            "columns": dict(columns),
            "only": None if only is None else list(only),
            "keys": keys,
        },
        sources=source.files,
        kinds={"item": keys, "category": keys},
        overwrite=overwrite,
    )


def prepare_parts(
    data: str,
    deal: Callable[[UserParts], dict[str, int]],
    protocol: Protocol,
    out: Path,
    *,
    settings: Mapping[str, Any],
    sources: Sequence[Path],
    kinds: Mapping[str, KeyKind],
    overwrite: bool,
) -> Prepared:
    """Return the samples of users in `out`, preparing them if needed.

    Args:
        data: the data set's name.
        deal: appends all behaviours to the parts and returns the lines that were left out, by
            reason.
        protocol: how samples are made.
        out: folder of the prepared set; beside it is room for the behaviours, 32 bytes each.
        settings: what the behaviours depend on besides the raw files; plain JSON types.
        sources: the raw files.
        kinds: what numbers of items and categories are, see `write_samples`.
        overwrite: prepare again whatever is in `out`.

    Raises:
        ValueError: if no user has enough behaviours.
    """

    def write(folder: Path, facts: Mapping[str, Any]) -> None:
        num_parts = 1 + sum(path.stat().st_size for path in sources) // _BYTES_PER_PART
        with UserParts(folder.parent, num_parts=num_parts) as parts:
            facts = {**facts, "bad_lines": deal(parts)}
            write_samples(parts.logs, protocol, folder, facts, name=data, kinds=kinds)

    return prepare_once(
        out,
        name=data,
        settings={**settings, "protocol": protocol.settings()},
        sources=sources,
        write=write,
        overwrite=overwrite,
    )


class _Columns(NamedTuple):
    """The raw columns of a log, see `prepare_log`."""

    raw: Mapping[str, str]
    only: tuple[str, str] | None
    keys: KeyKind

    def kinds(self) -> dict[str, Kind]:
        """Return how each is read."""
        found: dict[str, Kind] = dict.fromkeys(self.raw.values(), self.keys)
        if self.only is not None:
            found[self.only[0]] = "string"
        found[self.raw["time"]] = "int"
        return found


def _deal(
    data: str,
    source: Source,
    parts: UserParts,
    columns: _Columns,
    on_bad_line: OnBadLine,
) -> dict[str, int]:
    """Deal all behaviours of a source; return the lines that were left out, by reason."""
    kinds = columns.kinds()

    def parsed(block: Block) -> tuple[dict[str, NDArray[np.int64]], Counter[str], int]:
        chunk = source.chunk(block, kinds, on_bad_line)
        if columns.only is not None:
            chunk = chunk.keep(_is(chunk, *columns.only))
        skipped = Counter(chunk.num_skipped)
        for raw in columns.raw.values():
            is_missing = chunk.table.column(raw).combine_chunks().is_null()
            mask = is_missing.to_numpy(zero_copy_only=False)
            if mask.any() and on_bad_line == "raise":
                line = int(chunk.lines[int(np.flatnonzero(mask)[0])])
                raise bad_line(chunk.file, line, f"column '{raw}' is missing")
            skipped[f"column '{raw}' is missing"] += int(mask.sum())
            chunk = chunk.keep(~mask)
        found = {name: _numbers(chunk.table.column(raw)) for name, raw in columns.raw.items()}
        return found, +skipped, block.num_bytes

    total = Counter[str]()
    with tqdm(
        total=source.total_bytes(), desc=f"{data}: sorting users", unit="B", unit_scale=True
    ) as bar:
        for found, skipped, num_bytes in ordered_map(parsed, source.blocks(kinds), _NUM_THREADS):
            parts.append(found)
            total += skipped
            bar.update(num_bytes)
    return dict(total)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return integers as they are, strings as keys."""
    array = column.combine_chunks()
    if pa.types.is_integer(array.type):
        numbers: NDArray[np.int64] = array.to_numpy(zero_copy_only=False).astype(np.int64)
        return numbers
    return keyed(array).of_rows()


def _is(chunk: Chunk, column: str, value: str) -> NDArray[np.bool_]:
    found = pc.equal(chunk.table.column(column).combine_chunks(), value).fill_null(False)
    mask: NDArray[np.bool_] = found.to_numpy(zero_copy_only=False)
    return mask
