"""Bit-packed codes: their layout by the integer that a row is, and what is refused."""

import pytest
import torch
from torch import Tensor

from recemb.kernels.code_bag import pack_codes, row_bytes, unpack_codes
from recemb.kernels.code_bag.packing import bytes_of_code

ALL_BITS = range(1, 17)


def drawn(bits: int, num_codes: int, num_rows: int = 5) -> Tensor:
    return torch.randint(2**bits, (num_rows, num_codes), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("num_codes", [1, 2, 5, 8, 11])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_codes_return_unchanged(bits: int, num_codes: int) -> None:
    codes = drawn(bits, num_codes)
    assert torch.equal(unpack_codes(pack_codes(codes, bits), num_codes, bits), codes.int())


@pytest.mark.parametrize("bits", ALL_BITS)
def test_row_is_the_little_endian_integer_of_its_codes(bits: int) -> None:
    codes = drawn(bits, 5)
    for row, of_row in zip(pack_codes(codes, bits), codes.tolist(), strict=True):
        expected = sum(code << (p * bits) for p, code in enumerate(of_row))
        assert int.from_bytes(bytes(row.tolist()), "little") == expected


@pytest.mark.parametrize(
    ("num_codes", "bits", "expected"), [(1, 1, 1), (8, 1, 1), (9, 1, 2), (4, 6, 3), (3, 6, 3)]
)
def test_row_ends_with_a_whole_byte(num_codes: int, bits: int, expected: int) -> None:
    assert row_bytes(num_codes, bits) == expected
    assert pack_codes(drawn(bits, num_codes), bits).shape == (5, expected)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_code_lies_in_as_many_bytes_as_said(bits: int) -> None:
    spans = {(p * bits + bits - 1) // 8 - p * bits // 8 + 1 for p in range(8)}
    assert bytes_of_code(bits) == max(spans)


def test_tables_without_rows_are_packed_and_unpacked() -> None:
    packed = pack_codes(torch.zeros(0, 5, dtype=torch.int64), 6)
    assert packed.shape == (0, 4)
    assert unpack_codes(packed, 5, 6).shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_codes_of_any_integer_type_are_packed(dtype: torch.dtype) -> None:
    codes = torch.tensor([[1, 0, 63]], dtype=dtype)
    assert unpack_codes(pack_codes(codes, 6), 3, 6).tolist() == [[1, 0, 63]]


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (torch.tensor([[4]]), 2, "2 bits hold codes from 0 to 3, got 4 to 4"),
        (torch.tensor([[-1, 0]]), 8, "got -1 to 0"),
        (torch.tensor([[0]]), 0, "bits must be from 1 to 16, got 0"),
        (torch.tensor([[0]]), 17, "bits must be from 1 to 16, got 17"),
        (torch.tensor([0]), 2, r"codes must be \(R, P\) integers"),
        (torch.tensor([[0.0]]), 2, r"codes must be \(R, P\) integers"),
        (torch.tensor([[True]]), 2, r"codes must be \(R, P\) integers"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes: Tensor, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"pack_codes: .*{message}"):
        pack_codes(codes, bits)


@pytest.mark.parametrize(
    ("packed", "num_codes", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.uint8), 5, r"5 codes of 6 bits are rows \(R, 4\) uint8"),
        (torch.zeros(4, dtype=torch.uint8), 5, r"rows \(R, 4\) uint8"),
        (torch.zeros(2, 4), 5, r"rows \(R, 4\) uint8"),
        (torch.zeros(2, 0, dtype=torch.uint8), 0, "at least one code"),
    ],
)
def test_rows_of_another_size_are_refused(packed: Tensor, num_codes: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"unpack_codes: .*{message}"):
        unpack_codes(packed, num_codes, 6)
