"""Checkpoints as folders that appear whole or not at all, verified by checksum when read.

A checkpoint is a folder with a manifest (plain JSON: which tensors there are, where they lie, plain
values, checksums) and tensor files in the safetensors format. Nothing in it is a pickle, and
nothing in it can execute. It is written under a temporary name, flushed to the disk, and renamed; a
process killed at any moment leaves either the finished folder or a temporary one that is never read
and is removed by the next writer. A run's checkpoints have one writer at a time; in other folders
each checkpoint may have its own.

Checkpoints of format 1 are read, see `version_1`.
"""

import abc
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from recemb.checkpoint import version_1
from recemb.checkpoint.atomic import WholeFolder
from recemb.checkpoint.checked_file import CheckedFile, write_checked
from recemb.checkpoint.chunk_reader import read_all
from recemb.checkpoint.manifest import (
    Manifest,
    StoredChunk,
    StoredTensor,
    format_version,
    read_manifest,
)
from recemb.checkpoint.plain_tree import Leaf, join, split
from recemb.checkpoint.tensor_file import tensor_bytes


@dataclass(frozen=True, order=True)
class CheckpointName:
    """A checkpoint's name, `<kind>-<step>`; ordered by kind, then step."""

    kind: str
    step: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.step:010d}"


CHECKPOINT_NAMES = re.compile(r".+-\d{10,}")
"""All that `CheckpointName` spells."""

Entry = tuple[CheckpointName, Mapping[str, Any]]
"""A checkpoint to be written: its name and its state."""


class Checkpoints(abc.ABC):
    """The checkpoints of one run, wherever and by however many processes they are written.

    Attributes:
        folder: where they lie.
    """

    folder: Path

    @abc.abstractmethod
    def save(self, name: CheckpointName, state: Mapping[str, Any]) -> None:
        """Write `state` (tensors, numbers, strings, lists, dictionaries) under a name.

        Raises:
            OSError: if the disk is full or not writable; what was there before is untouched.
            TypeError: if the state holds anything else.
        """

    @abc.abstractmethod
    def names(self, kind: str) -> list[CheckpointName]:
        """Return the checkpoints of a kind, oldest first; unfinished ones do not count."""

    @abc.abstractmethod
    def load(self, name: CheckpointName) -> dict[str, Any]:
        """Return the state of one checkpoint, tensors on the CPU.

        Raises:
            FileNotFoundError: if there is none of that name.
            ValueError: if it is damaged, has a newer format, or carries what could execute.
        """

    @abc.abstractmethod
    def load_newest(self, kind: str) -> tuple[CheckpointName, dict[str, Any]] | None:
        """Return the newest checkpoint of a kind that verifies, or None; warn of the others."""

    @abc.abstractmethod
    def remove(self, name: CheckpointName) -> None:
        """Remove one checkpoint; it vanishes at once, whatever happens during the removal."""

    def save_all(
        self,
        entries: Sequence[Entry],
        *,
        superseded: Callable[["Checkpoints"], Sequence[CheckpointName]],
    ) -> None:
        """Write several checkpoints, in this order, then remove those that are superseded.

        Args:
            entries: what to write.
            superseded: asked when all is written.

        Raises:
            OSError: as `save`; from a save before this one, if it went on in the background.
        """
        for name, state in entries:
            self.save(name, state)
        for name in superseded(self):
            self.remove(name)

    @abc.abstractmethod
    def finish(self) -> None:
        """Return when everything is written.

        Raises:
            OSError: if it could not be.
        """


class CheckpointStore(Checkpoints):
    """The checkpoints of a run of one process.

    Args:
        folder: where they lie; made when the first one is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, name: CheckpointName, state: Mapping[str, Any]) -> None:
        """Write `state`; a complete checkpoint of that name is replaced. See `Checkpoints`."""
        save_folder(self.folder / str(name), state, owned=CHECKPOINT_NAMES)

    def names(self, kind: str) -> list[CheckpointName]:
        """Return the checkpoints of a kind, oldest first; unfinished ones do not count."""
        if not self.folder.is_dir():
            return []
        pattern = re.compile(rf"{re.escape(kind)}-(\d+)")
        found = map(pattern.fullmatch, WholeFolder.names(self.folder))
        return sorted(CheckpointName(kind, int(m[1])) for m in found if m)

    def load(self, name: CheckpointName) -> dict[str, Any]:
        """Return the state of one checkpoint, tensors on the CPU. See `Checkpoints`."""
        return read_folder(self.folder / str(name))

    def load_newest(self, kind: str) -> tuple[CheckpointName, dict[str, Any]] | None:
        """Return the newest checkpoint of a kind that verifies, or None; warn of the others."""
        for name in reversed(self.names(kind)):
            try:
                return name, self.load(name)
            except (ValueError, OSError) as error:
                warnings.warn(f"passing over a damaged checkpoint: {error}", stacklevel=2)
        return None

    def remove(self, name: CheckpointName) -> None:
        """Remove one checkpoint; it vanishes at once, whatever happens during the removal."""
        WholeFolder.remove(self.folder / str(name))

    def finish(self) -> None:
        """Return at once: `save` returns when it has written."""


def save_folder(
    folder: Path, state: Mapping[str, Any], *, owned: re.Pattern[str] | None = None
) -> None:
    """Write a state, which this process holds whole, into a folder that appears when it is whole.

    Args:
        folder: what is there is replaced.
        state: what to write.
        owned: matches the names of folders beside it that nobody else writes, see `WholeFolder`.

    Raises:
        OSError: if the disk is full or not writable; what was there before is untouched.
        TypeError: if the state holds something that is neither a tensor nor a plain value.
    """
    plain, tensors = split(state)
    target = WholeFolder(folder, owned=owned)
    try:
        target.begin()
        _write(target.unfinished, plain, tensors)
        target.commit()
    except OSError as error:
        target.abandon()
        raise cannot_write(folder, error) from error
    except BaseException:
        target.abandon()
        raise


def _write(folder: Path, plain: Any, tensors: Mapping[str, Leaf]) -> None:
    """Write the files of a checkpoint that this process holds whole."""
    file = shard_file(0, 1)
    parts: dict[str, Tensor] = {}
    stored: dict[str, StoredTensor] = {}
    for name, leaf in tensors.items():
        chunks = []
        for offsets, values in _boxes(leaf):
            key = add_chunk(parts, name, offsets, values)
            chunks.append(StoredChunk(offsets, tuple(values.shape), file, key))
        stored[name] = StoredTensor(leaf.dtype, tuple(leaf.shape), tuple(chunks))
    files = {file: write_shard(folder / file, parts)}
    Manifest(files, stored, plain).write(folder)


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> CheckedFile:
    """Write one tensor file and return its checksums."""
    return write_checked(path, tensor_bytes(tensors))


def read_folder(folder: Path) -> dict[str, Any]:
    """Return the state in a checkpoint's folder, of any format, verified, all tensors whole.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is damaged, has a newer format, or carries what could execute.
    """
    folder = WholeFolder.standing(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint {folder}")
    try:
        if format_version(folder) == 1:
            return version_1.load(folder)
        manifest = read_manifest(folder)
        return joined(manifest, read_all(folder, manifest))
    except ValueError as error:
        raise ValueError(f"checkpoint {folder}: {error}") from error


def joined(manifest: Manifest, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a manifest with these tensors.

    Raises:
        ValueError: if it is no dictionary.
    """
    state = join(manifest.state, tensors)
    if not isinstance(state, dict):
        raise ValueError(f"its state is a {type(state).__name__}, not a dictionary")
    return state


def shard_file(rank: int, num_ranks: int) -> str:
    """Return the name of the file that one of several processes writes."""
    return f"tensors-{rank:05d}-of-{num_ranks:05d}.safetensors"


def add_chunk(parts: dict[str, Tensor], name: str, offsets: tuple[int, ...], values: Tensor) -> str:
    """Put a chunk among the tensors of a file; return its name there.

    That is the tensor's own for a chunk that begins at 0.
    """
    key = f"{name}@{','.join(map(str, offsets))}" if any(offsets) else name
    while key in parts:
        # Another tensor may be called what this chunk would be.
        key += "'"
    parts[key] = values
    return key


def cannot_write(path: Path, error: Exception) -> OSError:
    """Return the error of a checkpoint that could not be written."""
    place = next(p for p in (path, *path.parents) if p.exists())
    free_mib = shutil.disk_usage(place).free >> 20
    return OSError(
        f"checkpoint {path} could not be written ({error}; {free_mib} MiB are free); free some "
        "space or set another paths.run; earlier checkpoints are untouched"
    )


def _boxes(leaf: Leaf) -> list[tuple[tuple[int, ...], Tensor]]:
    if isinstance(leaf, Tensor):
        return [((0,) * leaf.dim(), leaf)]
    missing = leaf.shape.numel() - sum(chunk.values.numel() for chunk in leaf.chunks)
    if missing:
        raise ValueError(f"{leaf}: {missing} values are held by no chunk of this process")
    return [(chunk.offsets, chunk.values) for chunk in leaf.chunks]
