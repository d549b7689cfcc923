"""torch.distributed.checkpoint over recemb's checkpoint files.

PyTorch plans who writes which chunk, and which parts of which stored chunks make a chunk that a
process wants; here are the files. Its own storage keeps the plan as a pickle (`.metadata`), which
loading would execute; ours is the JSON manifest, and a state's plain values never reach PyTorch's
planner, which would pickle them.
"""

import dataclasses
import os
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from recemb.checkpoint.atomic import WholeFolder
from recemb.checkpoint.checked_file import CheckedFile
from recemb.checkpoint.chunk_reader import ChunkReader
from recemb.checkpoint.manifest import Manifest, StoredChunk, StoredTensor
from recemb.checkpoint.store import add_chunk, shard_file, write_shard
from recemb.tables.tensor_chunks import TensorChunks


class ChunkSavePlanner(DefaultSavePlanner):
    """PyTorch's planner over a flat dictionary, which may hold `TensorChunks`."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Return the values of a chunk."""
        found = self.state_dict[index.fqn]
        if isinstance(found, TensorChunks):
            return found.__get_tensor_shard__(index)
        return super().lookup_object(index)


class ChunkLoadPlanner(DefaultLoadPlanner):
    """The same for loading."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """Take the state as it is: PyTorch's rule, for tensors on "meta", empties other objects."""
        self.state_dict = state_dict
        self.original_state_dict = state_dict
        self.metadata = metadata
        self.is_coordinator = is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """Return the memory that a chunk is loaded into."""
        found = self.state_dict[index.fqn]
        if isinstance(found, TensorChunks):
            return found.__get_tensor_shard__(index)
        return super().lookup_tensor(index)


class ShardWriter(StorageWriter):
    """Writes one file per process, and the manifest when all are there.

    Args:
        target: the checkpoint's folder.
        plain: the state's plain values.
    """

    def __init__(self, target: WholeFolder, plain: Any) -> None:
        self._target = target
        self._plain = plain

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: a writer writes one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make the place to write."""
        if is_coordinator:
            self._target.begin()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Return the plans, each with the name of its file."""
        return [
            dataclasses.replace(plan, storage_data=shard_file(rank, len(plans)))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's file; nothing if it has no chunk."""
        file: str = plan.storage_data
        parts: dict[str, Tensor] = {}
        chunks: list[tuple[MetadataIndex, StoredChunk]] = []
        for item in plan.items:
            values = planner.resolve_data(item)
            assert isinstance(values, Tensor), "plain values are the manifest's"
            offsets = tuple(item.index.offset or (0,) * values.dim())
            key = add_chunk(parts, item.index.fqn, offsets, values)
            chunks.append((item.index, StoredChunk(offsets, tuple(values.shape), file, key)))
        checked = write_shard(self._target.unfinished / file, parts) if parts else None
        done: Future[list[WriteResult]] = Future()
        done.set_result(
            [
                WriteResult(index, parts[chunk.key].nbytes, (chunk, None if place else checked))
                for place, (index, chunk) in enumerate(chunks)
            ]
        )
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the manifest and let the checkpoint appear."""
        files: dict[str, CheckedFile] = {}
        chunks: dict[str, list[StoredChunk]] = {name: [] for name in metadata.state_dict_metadata}
        for result in (result for its in results for result in its):
            chunk, checked = result.storage_data
            chunks[result.index.fqn].append(chunk)
            if checked is not None:
                files[chunk.file] = checked
        tensors = {}
        for name, its in metadata.state_dict_metadata.items():
            assert isinstance(its, TensorStorageMetadata), "plain values are the manifest's"
            tensors[name] = StoredTensor(its.properties.dtype, tuple(its.size), tuple(chunks[name]))
        Manifest(files, tensors, self._plain).write(self._target.unfinished)
        self._target.commit()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return False: this storage is chosen by name alone."""
        return False


class ShardReader(StorageReader):
    """Reads the parts of chunks that the processes want.

    Args:
        reader: of the checkpoint, verified.
    """

    def __init__(self, reader: ChunkReader) -> None:
        self._reader = reader

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: a reader reads one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the manifest in PyTorch's words."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=stored.dtype),
                    torch.Size(stored.shape),
                    [
                        ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.sizes))
                        for c in stored.chunks
                    ],
                )
                for name, stored in self._reader.manifest.tensors.items()
            }
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what the plan names into its owners' memory."""
        for item in plan.items:
            stored = self._reader.manifest.tensors[item.storage_index.fqn]
            place = tuple(item.storage_index.offset or ())
            chunk = next(c for c in stored.chunks if c.offsets == place)
            box = tuple(
                slice(first, first + size)
                for first, size in zip(item.storage_offsets, item.lengths, strict=True)
            )
            target = planner.resolve_tensor(item).detach()
            target.copy_(self._reader.chunk(stored, chunk)[box])
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return False: this storage is chosen by name alone."""
        return False
