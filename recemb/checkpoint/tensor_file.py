"""Tensors in the safetensors format, written as a stream and read through a memory map.

The format: eight bytes, the length of the header; the header, JSON that gives each tensor's type,
shape and place; then the tensors' bytes, little-endian, without gaps. Written here rather than by
the safetensors package because that one makes a copy of every tensor before it writes the first,
and reads whole files only; its reader is what the tests hold this to.

Source: https://github.com/huggingface/safetensors, section "Format" of the README.
"""

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT_BYTES = 64
"""Where tensors' bytes begin, counted from the header's length."""

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 << 20
_CHUNK_BYTES = 1 << 24
_NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TYPES: Mapping[str, torch.dtype] = {name: dtype for dtype, name in _NAMES.items()}
"""The types that files can hold, by the format's names for them."""


def type_name(dtype: torch.dtype) -> str:
    """Return the format's name for a type.

    Raises:
        ValueError: if the format does not have it.
    """
    if dtype not in _NAMES:
        raise ValueError(
            f"safetensors files cannot hold the type {dtype}; convert it to one of "
            f"{[str(known) for known in _NAMES]}"
        )
    return _NAMES[dtype]


def tensor_bytes(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the file that holds `tensors`, piece by piece.

    Wide types come first, so that every tensor is aligned.

    Raises:
        ValueError: on a type that the format does not have.
    """
    for name, tensor in tensors.items():
        try:
            type_name(tensor.dtype)
        except ValueError as error:
            raise ValueError(f"tensor '{name}': {error}") from None
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in ordered:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    padding = -(_LENGTH_BYTES + len(text)) % ALIGNMENT_BYTES
    yield (len(text) + padding).to_bytes(_LENGTH_BYTES, "little") + text + b" " * padding
    for name in ordered:
        yield from _pieces(tensors[name])


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor; copies at most a piece of one that is elsewhere."""
    flat = tensor.detach().contiguous().view(-1)
    step = max(1, _CHUNK_BYTES // flat.element_size())
    for piece in torch.split(flat, step):
        if piece.numel():
            yield piece.cpu().contiguous().view(torch.uint8).numpy().data


def map_file(path: Path) -> NDArray[np.uint8]:
    """Return a private map of a file: read where it is touched; what is written stays in memory."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)


def map_tensors(data: NDArray[np.uint8], owner: str) -> dict[str, Tensor]:
    """Return the tensors of a file, which share the memory of `data`.

    Args:
        data: (num_bytes,) the whole file; a map of it is read only where tensors are.
        owner: names the file in errors.

    Raises:
        ValueError: if it is no such file, or a tensor lies outside it.
    """
    header, first = _header(data, owner)
    found: dict[str, Tensor] = {}
    places: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype = TYPES[entry["dtype"]]
            shape = [int(size) for size in entry["shape"]]
            start, end = (int(place) for place in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(owner, f"tensor '{name}' is not described ({error!r})") from None
        is_inside = 0 <= start <= end <= len(data) - first
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or not is_inside or end - start != size:
            raise _damaged(owner, f"tensor '{name}' of shape {shape} is not at [{start}, {end})")
        found[name] = _tensor(data[first + start : first + end], dtype).view(shape)
        places.append((start, end))
    reached = 0
    for start, end in sorted(places):
        if start != reached:
            raise _damaged(owner, f"byte {min(start, reached)} belongs to no or to two tensors")
        reached = end
    if reached != len(data) - first:
        raise _damaged(owner, f"{len(data) - first - reached} bytes at the end belong to nothing")
    return found


def _header(data: NDArray[np.uint8], owner: str) -> tuple[dict[str, Any], int]:
    """Return the header and where the tensors' bytes begin."""
    length = int.from_bytes(data[:_LENGTH_BYTES].tobytes(), "little")
    first = _LENGTH_BYTES + length
    if len(data) < _LENGTH_BYTES or first > len(data) or length > _MAX_HEADER_BYTES:
        raise _damaged(owner, f"its header would be {length} bytes long")
    try:
        header = json.loads(data[_LENGTH_BYTES:first].tobytes())
    except ValueError as error:
        raise _damaged(owner, f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _damaged(owner, "its header is not a JSON object")
    return header, first


def _tensor(data: NDArray[np.uint8], dtype: torch.dtype) -> Tensor:
    """Return bytes as a flat tensor, in place if they are aligned."""
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()
    return torch.from_numpy(data).view(dtype)


def _damaged(owner: str, what: str) -> ValueError:
    return ValueError(f"{owner}: this is not a safetensors file: {what}")
