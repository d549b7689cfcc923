"""Checkpoints that several processes write and read together, each its own part.

The format is that of `recemb.checkpoint.store`, a file for each process: what one number of
processes saved, any other loads, and one process alone reads it with `CheckpointStore`.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.tensor import DTensor

from recemb.checkpoint.atomic import WholeFolder
from recemb.checkpoint.chunk_reader import ChunkReader
from recemb.checkpoint.manifest import Manifest, format_version, read_manifest
from recemb.checkpoint.plain_tree import Leaf, leaves, split
from recemb.checkpoint.sharded_files import (
    ChunkLoadPlanner,
    ChunkSavePlanner,
    ShardReader,
    ShardWriter,
)
from recemb.checkpoint.store import (
    CHECKPOINT_NAMES,
    CheckpointName,
    Checkpoints,
    CheckpointStore,
    cannot_write,
    joined,
    read_folder,
)
from recemb.tables.tensor_chunks import TensorChunks

T = TypeVar("T")


class ShardedCheckpointStore(Checkpoints):
    """The checkpoints of a run of several processes.

    Every process of the group makes every call, with states of the same names. A tensor is sharded
    where it is a `TensorChunks`, a DTensor or a ShardedTensor: each process writes what it holds.
    Other tensors are the same everywhere, and one process writes each; plain values are those of
    the first process. All processes see the same folder.

    Args:
        folder: where they lie.
        group: the processes; None for all. It must be able to send objects between CPUs (gloo). One
            that training does not use, if `save` is called from another thread.
    """

    def __init__(self, folder: Path, *, group: dist.ProcessGroup | None = None) -> None:
        self.folder = folder
        self._group = group
        self._local = CheckpointStore(folder)
        self._rank = dist.get_rank(group)
        self._num_ranks = dist.get_world_size(group)

    def save(self, name: CheckpointName, state: Mapping[str, Any]) -> None:
        """Write `state`; a complete checkpoint of that name is replaced. See `Checkpoints`."""
        plain, tensors = split(state)
        target = WholeFolder(self.folder / str(name), owned=CHECKPOINT_NAMES)
        try:
            save_distributed(
                dict(tensors),
                storage_writer=ShardWriter(target, plain),
                planner=ChunkSavePlanner(),
                process_group=self._group,
            )
        except CheckpointException as error:
            if self._rank == 0:
                target.abandon()
            raise _one_of(error, target.path) from error

    def names(self, kind: str) -> list[CheckpointName]:
        """Return the checkpoints of a kind, oldest first, as the first process sees them."""
        return self._from_first(self._local.names(kind) if self._rank == 0 else [])

    def load(
        self, name: CheckpointName, *, into: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the state of one checkpoint, tensors on the CPU. See `Checkpoints`.

        Args:
            name: which.
            into: a state, or a part of one, whose sharded tensors say what each process wants:
                their memory is written to, and they stand in the result. All other tensors are
                read whole.

        Raises:
            FileNotFoundError: if there is none of that name.
            ValueError: if it is damaged, has a newer format, carries what could execute, or its
                tensors have other names or shapes than those of `into`.
        """
        folder = WholeFolder.standing(self.folder / str(name))
        if not self._from_first(folder.is_dir()):
            raise FileNotFoundError(f"there is no checkpoint {folder}")
        if problem := self._problem(folder):
            raise ValueError(f"checkpoint {folder}: {problem}")
        return self._read(folder, into or {})

    def load_newest(
        self, kind: str, *, into: Mapping[str, Any] | None = None
    ) -> tuple[CheckpointName, dict[str, Any]] | None:
        """Return the newest checkpoint of a kind that verifies, or None; warn of the others.

        Nothing is written into `into`, see `load`, before all of a checkpoint has been verified.

        Raises:
            ValueError: if its tensors have other names or shapes than those of `into`.
        """
        for name in reversed(self.names(kind)):
            folder = WholeFolder.standing(self.folder / str(name))
            if problem := self._problem(folder):
                if self._rank == 0:
                    warnings.warn(
                        f"passing over a damaged checkpoint: checkpoint {folder}: {problem}",
                        stacklevel=2,
                    )
                continue
            return name, self._read(folder, into or {})
        return None

    def remove(self, name: CheckpointName) -> None:
        """Remove one checkpoint, when all processes have come here."""
        dist.barrier(self._group)
        if self._rank == 0:
            self._local.remove(name)

    def finish(self) -> None:
        """Return at once: `save` returns when all processes have written."""

    def _problem(self, folder: Path) -> str | None:
        """Return what is wrong with a checkpoint; each process reads its share of the files."""
        found: str | None = None
        try:
            if format_version(folder) == 1:
                read_folder(folder)
            else:
                manifest = read_manifest(folder)
                for file in sorted(manifest.files)[self._rank :: self._num_ranks]:
                    manifest.verify_file(folder, file)
        except (ValueError, OSError) as error:
            found = str(error)
        everyone: list[str | None] = [None] * self._num_ranks
        dist.all_gather_object(everyone, found, group=self._group)
        return next((problem for problem in everyone if problem), None)

    def _read(self, folder: Path, into: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {name: leaf for name, leaf in leaves(into).items() if _is_sharded(leaf)}
        if format_version(folder) == 1:
            if wanted:
                raise ValueError(
                    f"checkpoint {folder} has format 1, which knows no shards; load it in one "
                    "process and save it again"
                )
            return read_folder(folder)
        manifest = read_manifest(folder)
        _check_fit(folder, manifest, wanted)
        reader = ChunkReader(folder, manifest)
        if self._from_any(bool(wanted)):
            try:
                load_distributed(
                    dict(wanted),
                    storage_reader=ShardReader(reader),
                    planner=ChunkLoadPlanner(),
                    process_group=self._group,
                )
            except CheckpointException as failures:
                rank, (error, _) = min(failures.failures.items())
                raise ValueError(f"checkpoint {folder}: process {rank}: {error}") from failures
        rest = {name: reader.whole(name) for name in manifest.tensors if name not in wanted}
        return joined(manifest, {**wanted, **rest})

    def _from_first(self, value: T) -> T:
        """Return the first process's value."""
        values = [value]
        first = 0 if self._group is None else dist.get_global_rank(self._group, 0)
        dist.broadcast_object_list(values, src=first, group=self._group)
        return values[0]

    def _from_any(self, flag: bool) -> bool:
        """Return whether it is so for any process."""
        flags: list[bool] = [False] * self._num_ranks
        dist.all_gather_object(flags, flag, group=self._group)
        return any(flags)


def _is_sharded(leaf: Leaf) -> bool:
    return isinstance(leaf, TensorChunks | DTensor | ShardedTensor)


def _check_fit(folder: Path, manifest: Manifest, wanted: Mapping[str, Leaf]) -> None:
    """Check that a checkpoint has the sharded tensors that are wanted.

    Raises:
        ValueError: naming the first that is not there, or has another shape or type.
    """
    for name, leaf in wanted.items():
        stored = manifest.tensors.get(name)
        if stored is None:
            raise ValueError(f"checkpoint {folder} has no tensor '{name}'")
        if stored.shape != tuple(leaf.size()) or stored.dtype != leaf.dtype:
            raise ValueError(
                f"checkpoint {folder}: tensor '{name}' is {stored.shape} of {stored.dtype}, but "
                f"{tuple(leaf.size())} of {leaf.dtype} is wanted"
            )


def _one_of(failures: CheckpointException, path: Path) -> Exception:
    """Return the error of the first process that failed, in words that one process would use."""
    rank, (error, _) = min(failures.failures.items())
    if isinstance(error, OSError):
        return cannot_write(path, OSError(f"process {rank}: {error}"))
    return RuntimeError(f"checkpoint {path} could not be written: process {rank}: {error!r}")
