"""Codes of any number of bits, packed into the bytes of a row; plain torch.

A row is a string of bits, numbered from the low bit of its byte 0 upwards; code p is the bits
[p * bits, (p + 1) * bits), the low ones first. The row ends with zeros up to a whole byte, so a row
begins where a byte does, and nothing else is aligned.

Shapes: `R` rows, `P` codes of a row, `LB` = ceil(P * bits / 8) bytes of a row.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_BITS = 16


def row_bytes(num_codes: int, bits: int) -> int:
    """Return LB."""
    return -(-num_codes * bits // 8)


def bytes_of_code(bits: int) -> int:
    """Return how many bytes a code can lie in, from 1 to 3.

    Codes begin at multiples of gcd(bits, 8) within a byte.
    """
    last_start = 8 - math.gcd(bits, 8)
    return -(-(last_start + bits) // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Return the rows (R, LB) uint8 of `codes`; synchronises the device.

    Args:
        codes: (R, P) integer, each in [0, 2^bits).
        bits: of a code, 1 to 16.

    Raises:
        ValueError: if `bits` or a code is out of range, or `codes` has another form.

    Example:
        >>> pack_codes(torch.tensor([[1, 2, 3]]), bits=6)  # 000011 000010 000001
        tensor([[129,  48,   0]], dtype=torch.uint8)
    """
    owner = "pack_codes"
    check_bits(owner, bits)
    if codes.dim() != 2 or codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(
            f"{owner}: codes must be (R, P) integers, got {tuple(codes.shape)} {codes.dtype}"
        )
    if codes.numel():
        low, high = (int(end) for end in codes.aminmax())
        if low < 0 or high >= 2**bits:
            raise ValueError(
                f"{owner}: {bits} bits hold codes from 0 to {2**bits - 1}, got {low} to {high}; "
                "use more bits or fewer centroids"
            )
    num_rows, num_codes = codes.shape
    span = bytes_of_code(bits)
    num_bytes = row_bytes(num_codes, bits)
    # The last code's bytes may lie behind the row; its bits do not.
    packed = codes.new_zeros(num_rows, num_bytes + span - 1, dtype=torch.uint8)
    for p in range(num_codes):
        first, shift = divmod(p * bits, 8)
        word = codes[:, p].int() << shift
        for k in range(span):
            packed[:, first + k] |= ((word >> (8 * k)) & 0xFF).to(torch.uint8)
    return packed[:, :num_bytes].contiguous()


def unpack_codes(packed: Tensor, num_codes: int, bits: int) -> Tensor:
    """Return the codes (R, P) int32 of the rows `packed`.

    Args:
        packed: (R, LB) uint8, from `pack_codes`.
        num_codes: P.
        bits: of a code, 1 to 16.

    Raises:
        ValueError: if `bits` is out of range or `packed` is no table of that many codes.

    Example:
        >>> unpack_codes(torch.tensor([[129, 48, 0]], dtype=torch.uint8), num_codes=3, bits=6)
        tensor([[1, 2, 3]], dtype=torch.int32)
    """
    check_packed("unpack_codes", packed, num_codes, bits)
    bit = torch.arange(num_codes, device=packed.device) * bits
    first, shift = bit >> 3, (bit & 7).int()
    span = bytes_of_code(bits)
    padded = F.pad(packed, (0, span - 1))
    word = torch.zeros(packed.shape[0], num_codes, dtype=torch.int32, device=packed.device)
    for k in range(span):
        word |= padded[:, first + k].int() << (8 * k)
    codes: Tensor = (word >> shift) & (2**bits - 1)
    return codes


def check_bits(owner: str, bits: int) -> None:
    """Raise unless codes may have that many bits.

    Raises:
        ValueError: if they may not.
    """
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"{owner}: bits must be from 1 to {MAX_BITS}, got {bits}")


def check_packed(owner: str, packed: Tensor, num_codes: int, bits: int) -> None:
    """Raise unless `packed` is (R, LB) uint8 for that many codes.

    Raises:
        ValueError: if it is not.
    """
    check_bits(owner, bits)
    if num_codes < 1:
        raise ValueError(f"{owner}: a row must have at least one code, got {num_codes}")
    stored = row_bytes(num_codes, bits)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != stored:
        raise ValueError(
            f"{owner}: {num_codes} codes of {bits} bits are rows (R, {stored}) uint8, "
            f"got {tuple(packed.shape)} {packed.dtype}; make them by pack_codes"
        )
