"""Tensors out of the files of a checkpoint, whole or in part."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from recemb.checkpoint.checked_file import CheckedReader
from recemb.checkpoint.manifest import Manifest, StoredChunk, StoredTensor
from recemb.checkpoint.tensor_file import map_file, map_tensors, read_tensors


class ChunkReader:
    """Reads the tensors of one checkpoint, whose files have been verified.

    Args:
        folder: of the checkpoint.
        manifest: its manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._mapped: dict[str, dict[str, Tensor]] = {}

    def whole(self, name: str) -> Tensor:
        """Return a tensor, put together from its chunks, in memory of its own.

        Raises:
            ValueError: if a file does not hold what the manifest says.
        """
        stored = self.manifest.tensors[name]
        return join_chunks(stored, [self.chunk(stored, chunk) for chunk in stored.chunks]).clone()

    def chunk(self, stored: StoredTensor, chunk: StoredChunk) -> Tensor:
        """Return a chunk of a tensor: a map of its file, read where it is touched.

        Raises:
            ValueError: if the file does not hold what the manifest says.
        """
        if chunk.file not in self._mapped:
            path = self.folder / chunk.file
            self._mapped[chunk.file] = map_tensors(map_file(path), str(path))
        return checked_chunk(stored, chunk, self._mapped[chunk.file])


def read_all(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Return all tensors, whole, each in memory of its own; every file is read once, and verified.

    Raises:
        ValueError: if a file is damaged, or does not hold what the manifest says.
        OSError: if one cannot be read.
    """
    held: dict[str, dict[str, Tensor]] = {}
    for file, expected in manifest.files.items():
        with CheckedReader(folder / file, expected) as reader:
            held[file] = read_tensors(reader.fill, expected.num_bytes, file)
    found = {}
    for name, stored in manifest.tensors.items():
        found[name] = join_chunks(
            stored, [checked_chunk(stored, chunk, held[chunk.file]) for chunk in stored.chunks]
        )
        # What is joined is not needed any more in its parts.
        for chunk in stored.chunks:
            held[chunk.file].pop(chunk.key, None)
    return found


def checked_chunk(
    stored: StoredTensor, chunk: StoredChunk, tensors: Mapping[str, Tensor]
) -> Tensor:
    """Return a chunk out of the tensors of its file.

    Raises:
        ValueError: if they are not what the manifest says.
    """
    values = tensors.get(chunk.key)
    if values is None or values.shape != chunk.sizes or values.dtype != stored.dtype:
        raise ValueError(
            f"{chunk.file} does not hold a tensor '{chunk.key}' {chunk.sizes} of {stored.dtype}"
        )
    return values


def join_chunks(stored: StoredTensor, chunks: Sequence[Tensor]) -> Tensor:
    """Return the tensor that its chunks make: the chunk itself, if there is but one."""
    if len(chunks) == 1:
        return chunks[0]
    found = torch.empty(stored.shape, dtype=stored.dtype)
    for values, chunk in zip(chunks, stored.chunks, strict=True):
        box = (slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
        found[tuple(box)] = values
    return found
