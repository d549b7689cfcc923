"""Tensors out of the files of a checkpoint, whole or in part."""

from pathlib import Path

import torch
from torch import Tensor

from recemb.checkpoint.manifest import Manifest, StoredChunk, StoredTensor
from recemb.checkpoint.tensor_file import map_file, map_tensors


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
        if len(stored.chunks) == 1:
            return self.chunk(stored, stored.chunks[0]).clone()
        chunks = [(self.chunk(stored, chunk), chunk) for chunk in stored.chunks]
        found = torch.empty(stored.shape, dtype=stored.dtype)
        for values, chunk in chunks:
            box = tuple(
                slice(first, first + size)
                for first, size in zip(chunk.offsets, chunk.sizes, strict=True)
            )
            found[box] = values
        return found

    def chunk(self, stored: StoredTensor, chunk: StoredChunk) -> Tensor:
        """Return a chunk of a tensor: a map of its file, read where it is touched.

        Raises:
            ValueError: if the file does not hold what the manifest says.
        """
        if chunk.file not in self._mapped:
            path = self.folder / chunk.file
            self._mapped[chunk.file] = map_tensors(map_file(path), str(path))
        values = self._mapped[chunk.file].get(chunk.key)
        if values is None or values.shape != chunk.sizes or values.dtype != stored.dtype:
            raise ValueError(
                f"{chunk.file} does not hold a tensor '{chunk.key}' {chunk.sizes} of {stored.dtype}"
            )
        return values
