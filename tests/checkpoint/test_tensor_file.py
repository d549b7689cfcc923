"""Tensors as safetensors: the safetensors package reads what is written, and the other way."""

import json
from collections.abc import Mapping

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from recemb.checkpoint.tensor_file import ALIGNMENT_BYTES, map_tensors, tensor_bytes

BUFFER = torch.arange(12, dtype=torch.float32).view(6, 2)
TENSORS = {
    "one.weight": BUFFER[:2],
    "two.weight": BUFFER[2:],
    "codes": torch.tensor([[1, 255, 7]], dtype=torch.uint8),
    "half": torch.randn(3, 5).half(),
    "brain": torch.randn(7).bfloat16(),
    "wide": torch.tensor([2**62, -1]),
    "narrow": torch.tensor([2**30, -1], dtype=torch.int32),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "mask": torch.tensor([True, False]),
    "transposed": torch.randn(3, 4).t(),
    "nothing": torch.empty(0, 4),
}


def file_of(tensors: Mapping[str, Tensor]) -> bytes:
    return b"".join(bytes(piece) for piece in tensor_bytes(tensors))


def mapped(data: bytes) -> dict[str, Tensor]:
    return map_tensors(np.frombuffer(bytearray(data), np.uint8), "here")


def test_the_safetensors_package_reads_what_is_written() -> None:
    found = safetensors.torch.load(file_of(TENSORS))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_what_the_safetensors_package_writes_is_read() -> None:
    tensors = {name: tensor.contiguous().clone() for name, tensor in TENSORS.items()}
    found = mapped(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_without_the_header_there_are_as_many_bytes_as_in_the_tensors() -> None:
    data = file_of(TENSORS)
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    assert len(data) - header_bytes == sum(t.nbytes for t in TENSORS.values())
    assert header_bytes % ALIGNMENT_BYTES == 0


def test_an_unknown_type_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'odd': .* torch\.complex64"):
        file_of({"odd": torch.zeros(2, dtype=torch.complex64)})


def altered(**changes: object) -> bytes:
    """Return a file of one tensor whose description has been changed."""
    data = file_of({"x": torch.zeros(2, 3)})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["x"] |= changes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234",
        (2**40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"nope",
        altered(shape=[2, 4]),
        altered(shape=[-2, -3]),
        altered(data_offsets=[4, 28]),
        altered(data_offsets=[0, 10**6]),
        altered(dtype="F8"),
        altered(dtype="F64", shape=[3]) + b"more",
    ],
)
def test_a_file_that_does_not_hold_together_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="here: this is not a safetensors file"):
        mapped(data)
