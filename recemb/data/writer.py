"""Encoded rows to the files of a prepared set."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from recemb.data.behaviours import history_counts
from recemb.data.encoded import EncodedRows
from recemb.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    SPLITS,
    sha256,
    sync_folder,
    write_json,
)
from recemb.data.schema import Schema

_MAX_EMBEDDINGS = 2**31


class _Column:
    """One file that grows, with its checksum."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def append(self, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        self._file.write(data)
        self._digest.update(data)
        self._num_bytes += len(data)

    def close(self) -> dict[str, Any]:
        """Put the file onto the disk and return its entry of the manifest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self._num_bytes, "sha256": self._digest.hexdigest()}

    def abandon(self) -> None:
        self._file.close()


class Writer:
    """Writes a prepared set into an empty folder; the folder is whole after `finish`.

    Memory: the rows handed to `append`, and eight bytes per id of every feature for the counts;
    where there are histories, in `finish`, twenty bytes per behaviour more.

    Args:
        folder: an existing, empty folder, to be renamed by the caller when it is whole.
        schema: the columns to write.

    Raises:
        ValueError: if a feature has more ids than 31 bits can hold.
    """

    def __init__(self, folder: Path, schema: Schema) -> None:
        for column in schema.categorical:
            if column.num_embeddings > _MAX_EMBEDDINGS:
                raise ValueError(
                    f"feature '{column.name}': num_embeddings is {column.num_embeddings}, but "
                    f"prepared ids have 31 bits; hash it to at most {_MAX_EMBEDDINGS}"
                )
        self.folder = folder
        self.schema = schema
        self._one_hot = [i for i, c in enumerate(schema.categorical) if not c.is_multi_hot]
        self._multi_hot = [i for i, c in enumerate(schema.categorical) if c.is_multi_hot]
        sizes = [schema.column(name).num_embeddings for name in schema.feature_names]
        self._counts = [np.zeros(size, np.int64) for size in sizes]
        self._stored = [h for h in schema.histories if not h.is_position]
        self._num_behaviours = 0
        self._columns: dict[str, _Column] = {}
        self._num_rows: dict[str, int] = {}
        self._num_values: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for column in self._columns.values():
            column.abandon()

    def append(self, split: str, rows: EncodedRows) -> None:
        """Add `rows` to the end of `split`."""
        rows.check(self.schema)
        self._open(split)
        self._num_rows[split] += len(rows)
        self._column(split, "labels.u8").append(rows.labels)
        self._column(split, "dense.f32").append(rows.dense)
        self._column(split, "ids.i32").append(rows.ids)
        if rows.groups is not None:
            self._column(split, "groups.i64").append(rows.groups)
        if rows.spans is not None:
            self._column(split, "spans.i64").append(rows.spans)
        for j, bag in enumerate(rows.bags):
            offset = self._num_values[f"{split}/{j}"]
            self._column(split, f"bag_{j}.values.i32").append(bag.values)
            self._column(split, f"bag_{j}.offsets.i64").append(offset + np.cumsum(bag.lengths))
            self._num_values[f"{split}/{j}"] += bag.values.shape[0]
            if bag.weights is not None:
                self._column(split, f"bag_{j}.weights.f32").append(bag.weights)
        if split == "train":
            self._count(rows)

    def append_behaviours(self, columns: Sequence[NDArray[np.int32]]) -> int:
        """Add behaviours to those of all users; return the number of those before them.

        Args:
            columns: (m,) ids of each stored history, in the schema's order.
        """
        first, size = self._num_behaviours, len(columns[0])
        folder = self.folder / "behaviours"
        folder.mkdir(exist_ok=True)
        for j, (history, ids) in enumerate(zip(self._stored, columns, strict=True)):
            limit = self.schema.column(history.name).num_embeddings
            assert ids.shape == (size,)
            assert not size or (int(ids.min()) >= 0 and int(ids.max()) < limit)
            self._column("behaviours", f"{j}.i32").append(ids)
        self._num_behaviours += size
        return first

    def num_rows(self, split: str) -> int:
        """Return how many rows `split` has so far."""
        return self._num_rows.get(split, 0)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write counts and manifest and put everything onto the disk.

        Args:
            facts: further entries of the manifest: name, settings, sources, reference, ...
        """
        files = {name: column.close() for name, column in self._columns.items()}
        self._columns = {}
        if self.schema.histories:
            self._count_histories()
        counts_folder = self.folder / "counts"
        counts_folder.mkdir()
        for i, counts in enumerate(self._counts):
            counts.tofile(counts_folder / f"{i}.i64")
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name not in files:
                files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
                _sync_file(path)
            elif path.is_dir():
                sync_folder(path)
        manifest = {
            **facts,
            "format": FORMAT_VERSION,
            "schema": self.schema.to_dict(),
            "rows": {s: self._num_rows[s] for s in SPLITS if s in self._num_rows},
            "files": files,
        }
        write_json(self.folder / MANIFEST_NAME, manifest)
        sync_folder(self.folder)

    def _open(self, split: str) -> None:
        if split in self._num_rows:
            return
        assert split in SPLITS, split
        (self.folder / split).mkdir()
        self._num_rows[split] = 0
        for j in range(len(self._multi_hot)):
            self._num_values[f"{split}/{j}"] = 0
            self._column(split, f"bag_{j}.offsets.i64").append(np.zeros(1, np.int64))

    def _column(self, split: str, name: str) -> _Column:
        key = f"{split}/{name}"
        if key not in self._columns:
            self._columns[key] = _Column(self.folder / split / name)
        return self._columns[key]

    def _count(self, rows: EncodedRows) -> None:
        for position, i in enumerate(self._one_hot):
            np.add.at(self._counts[i], rows.ids[:, position], 1)
        for bag, i in zip(rows.bags, self._multi_hot, strict=True):
            np.add.at(self._counts[i], bag.values, 1)

    def _count_histories(self) -> None:
        """Count the ids in the histories of the training examples."""
        shape = (self._num_rows["train"], 2)
        spans = np.memmap(self.folder / "train/spans.i64", "<i8", "r", shape=shape)
        uses, by_length = history_counts(np.asarray(spans), self._num_behaviours)
        stored = 0
        for history, counts in zip(
            self.schema.histories, self._counts[len(self.schema.categorical) :], strict=True
        ):
            if history.is_position:
                # The j-th most recent place is in every history of at least j behaviours.
                longer = by_length[::-1].cumsum()[::-1]
                counts[1 : len(longer)] = longer[1:]
            else:
                ids = np.fromfile(self.folder / f"behaviours/{stored}.i32", "<i4")
                counts += np.bincount(ids, uses, len(counts)).astype(np.int64)
                stored += 1


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
