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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
    length = _header_bytes(data[:_LENGTH_BYTES].tobytes(), len(data), owner)
    first = _LENGTH_BYTES + length
    header = _header(data[_LENGTH_BYTES:first].tobytes(), owner)
    return {
        place.name: _tensor(data[first + place.start : first + place.end], place.dtype).view(
            place.shape
        )
        for place in _places(header, len(data) - first, owner)
    }


def read_tensors(
    read: Callable[[memoryview], None], num_bytes: int, owner: str
) -> dict[str, Tensor]:
    """Return the tensors of a file that is read once, each in memory of its own.

    Args:
        read: fills a buffer with the next bytes of the file.
        num_bytes: of the file.
        owner: names the file in errors.

    Raises:
        ValueError: if it is no such file, or a tensor lies outside it.
    """
    start = bytearray(min(_LENGTH_BYTES, num_bytes))
    read(memoryview(start))
    text = bytearray(_header_bytes(bytes(start), num_bytes, owner))
    read(memoryview(text))
    rest = num_bytes - _LENGTH_BYTES - len(text)
    found: dict[str, Tensor] = {}
    for place in _places(_header(bytes(text), owner), rest, owner):
        tensor = torch.empty(place.shape, dtype=place.dtype)
        if tensor.numel():
            read(tensor.view(-1).view(torch.uint8).numpy().data)
        found[place.name] = tensor
    return found


class _Place(NamedTuple):
    """Where a tensor lies behind the header."""

    start: int
    end: int
    name: str
    dtype: torch.dtype
    shape: list[int]


def _places(header: Mapping[str, Any], num_bytes: int, owner: str) -> list[_Place]:
    """Return where all tensors lie, in the order of their places, which leave no gap.

    Args:
        header: the file's.
        num_bytes: how many follow it.
        owner: names the file in errors.
    """
    places = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype = TYPES[entry["dtype"]]
            shape = [int(size) for size in entry["shape"]]
            start, end = (int(place) for place in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(owner, f"tensor '{name}' is not described ({error!r})") from None
        is_inside = 0 <= start <= end <= num_bytes
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or not is_inside or end - start != size:
            raise _damaged(owner, f"tensor '{name}' of shape {shape} is not at [{start}, {end})")
        places.append(_Place(start, end, name, dtype, shape))
    places.sort(key=lambda place: place[:2])
    reached = 0
    for place in places:
        if place.start != reached:
            raise _damaged(
                owner, f"byte {min(place.start, reached)} belongs to no or to two tensors"
            )
        reached = place.end
    if reached != num_bytes:
        raise _damaged(owner, f"{num_bytes - reached} bytes at the end belong to nothing")
    return places


def _header_bytes(start: bytes, num_bytes: int, owner: str) -> int:
    """Return the length of the header that the first bytes of a file announce."""
    length = int.from_bytes(start, "little")
    is_whole = len(start) == _LENGTH_BYTES and _LENGTH_BYTES + length <= num_bytes
    if not is_whole or length > _MAX_HEADER_BYTES:
        raise _damaged(owner, f"its header would be {length} bytes long")
    return length


def _header(text: bytes, owner: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(owner, f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _damaged(owner, "its header is not a JSON object")
    return header


def _tensor(data: NDArray[np.uint8], dtype: torch.dtype) -> Tensor:
    """Return bytes as a flat tensor, in place if they are aligned."""
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()
    return torch.from_numpy(data).view(dtype)


def _damaged(owner: str, what: str) -> ValueError:
    return ValueError(f"{owner}: this is not a safetensors file: {what}")
