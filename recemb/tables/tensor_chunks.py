"""A tensor of which this process holds parts: what sharded tables hand to a checkpoint.

Shapes: those of the whole tensor, and boxes in it, given by offsets and sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor.

    Attributes:
        offsets: where it begins, one number for each dimension.
        values: its content; memory of its owner, so that loading writes into the owner.
    """

    offsets: tuple[int, ...]
    values: Tensor = field(repr=False)

    def fill_from(self, source: "Tensor | TensorChunks") -> None:
        """Copy from a whole tensor, or from what overlaps with this of a tensor's chunks."""
        if isinstance(source, Tensor):
            self.values.copy_(box_of(source, self.offsets, tuple(self.values.shape)))
            return
        for other in source.chunks:
            first = [max(a, b) for a, b in zip(self.offsets, other.offsets, strict=True)]
            last = [
                min(a + c, b + d)
                for a, b, c, d in zip(
                    self.offsets, other.offsets, self.values.shape, other.values.shape, strict=True
                )
            ]
            size = tuple(e - b for b, e in zip(first, last, strict=True))
            if all(n > 0 for n in size):
                here = tuple(a - b for a, b in zip(first, self.offsets, strict=True))
                there = tuple(a - b for a, b in zip(first, other.offsets, strict=True))
                box_of(self.values, here, size).copy_(box_of(other.values, there, size))


class TensorChunks:
    """The chunks of one tensor that this process holds; the others are elsewhere.

    It follows torch.distributed.checkpoint's protocol for objects that it can save and load
    (`__create_write_items__` and the two after it).

    Args:
        shape: of the whole tensor.
        dtype: of its values.
        chunks: those of this process; may be none.

    Raises:
        ValueError: if a chunk lies outside the shape or has another type.

    >>> rows = TensorChunks((5, 2), torch.float32, [Chunk((3, 0), torch.zeros(2, 2))])
    >>> rows.size()
    torch.Size([5, 2])
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, chunks: Sequence[Chunk]) -> None:
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.chunks = tuple(chunks)
        for chunk in chunks:
            its = chunk.values.shape
            is_inside = len(its) == len(chunk.offsets) == len(self.shape) and all(
                first >= 0 and first + size <= limit
                for first, size, limit in zip(chunk.offsets, its, self.shape, strict=True)
            )
            if not is_inside or chunk.values.dtype != dtype:
                raise ValueError(
                    f"TensorChunks: a chunk {tuple(its)} of {chunk.values.dtype} at "
                    f"{chunk.offsets} is no part of a tensor {tuple(self.shape)} of {dtype}"
                )

    def __repr__(self) -> str:
        held = ", ".join(f"{tuple(c.values.shape)} at {c.offsets}" for c in self.chunks)
        return f"TensorChunks({tuple(self.shape)}, {self.dtype}: {held or 'nothing'})"

    def size(self) -> torch.Size:
        """Return the shape of the whole tensor."""
        return self.shape

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=_box(chunk),
                    properties=TensorProperties(dtype=self.dtype),
                    size=self.shape,
                ),
            )
            for chunk in self._written()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [_box(chunk) for chunk in self.chunks if chunk.values.numel()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        for chunk in self._written():
            if index.offset is None or tuple(index.offset) == chunk.offsets:
                return chunk.values
        raise AssertionError(f"{self} has no chunk at {index}")

    def _written(self) -> list[Chunk]:
        """Return the chunks that hold values, or any of a tensor that has none."""
        is_empty = self.shape.numel() == 0
        return [c for c in self.chunks if c.values.numel()] or list(self.chunks[: int(is_empty)])


def box_of(tensor: Tensor, offsets: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Return the part of a tensor that begins at `offsets`, a view."""
    return tensor[tuple(slice(a, a + n) for a, n in zip(offsets, shape, strict=True))]


def _box(chunk: Chunk) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(
        offsets=torch.Size(chunk.offsets), sizes=torch.Size(chunk.values.shape)
    )
