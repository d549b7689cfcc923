"""Rows as integers of 8, 4 or 2 bits with a scale and a bias each.

    value ~ code * scale + bias,    bias = min,    scale = (max - min) / (2^bits - 1)

The formulas, the rounding and the order of the codes in a byte, lowest bits first, are FBGEMM's:
scale and bias are float32 for 8 bits, and float16 for 4 and 2, where codes are chosen for them as
they are stored. An element is off by at most half a scale, and by what the rounding of scale and
bias moves the ends of the row's range: 2^-11 |bias| + 2^-11 (2^bits - 1) scale for float16, of
which numbers below 6e-5 have fewer digits still.

Shapes: `n` rows, `D` values of a row, `LB` = ceil(D bits / 8) bytes of its codes.

Source: FBGEMM's FloatToFused8BitRowwiseQuantized and FloatToFusedNBitRowwiseQuantizedSBHalf.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Bits = Literal[8, 4, 2]

_EPSILON = 1e-8
_CHUNK_ROWS = 1 << 16


@dataclass(frozen=True)
class RowCodes:
    """A table of codes.

    Attributes:
        codes: (n, LB) uint8.
        scale: (n,) float32 for 8 bits, else float16.
        bias: (n,) of the same type.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor


def code_bytes(width: int, bits: int) -> int:
    """Return LB."""
    return -(-width * bits // 8)


def header_dtype(bits: int) -> torch.dtype:
    """Return the type of scale and bias."""
    return torch.float32 if bits == 8 else torch.float16


def encode_rows(weight: Tensor, bits: Bits) -> RowCodes:
    """Return the codes of the rows of `weight`.

    Args:
        weight: (n, D) floating, finite.
        bits: of a code.

    Raises:
        ValueError: if a value is not finite, or a scale or bias is beyond float16's 65504.
    """
    num_rows, width = weight.shape
    device, dtype = weight.device, header_dtype(bits)
    found = RowCodes(
        codes=torch.empty(num_rows, code_bytes(width, bits), dtype=torch.uint8, device=device),
        scale=torch.empty(num_rows, dtype=dtype, device=device),
        bias=torch.empty(num_rows, dtype=dtype, device=device),
    )
    for first in range(0, num_rows, _CHUNK_ROWS):
        part = slice(first, first + _CHUNK_ROWS)
        codes, found.scale[part], found.bias[part] = _encode(weight[part].float(), bits)
        found.codes[part] = pack(codes, bits)
    if not bool(found.scale.isfinite().all() & found.bias.isfinite().all()):
        raise ValueError(
            f"rows in {bits} bits: a value is not finite, or a row needs a scale or bias beyond "
            f"{torch.finfo(dtype).max:g}, the largest {dtype}"
        )
    return found


def decode_rows(found: RowCodes, width: int, bits: Bits) -> Tensor:
    """Return the values (n, D) that codes stand for."""
    values = unpack(found.codes, width, bits).float()
    return values * found.scale.unsqueeze(1) + found.bias.unsqueeze(1)


def to_half(values: Tensor) -> Tensor:
    """Return `values` as float16.

    Raises:
        ValueError: if one is not finite, or beyond float16's 65504.
    """
    found = values.half()
    if not bool(found.isfinite().all()):
        raise ValueError("a value is not finite, or beyond 65504, the largest float16")
    return found


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return the bytes (n, LB) of the codes (n, D) uint8."""
    if bits == 8:
        return codes
    padded = F.pad(codes, (0, -codes.shape[1] % (8 // bits)))
    neighbours = padded.view(codes.shape[0], code_bytes(codes.shape[1], bits), 8 // bits)
    shifted: Tensor = neighbours << _shifts(codes, bits)
    return shifted.sum(2, dtype=torch.uint8)


def unpack(packed: Tensor, width: int, bits: int) -> Tensor:
    """Return the codes (n, D) uint8 of the bytes (n, LB)."""
    if bits == 8:
        return packed
    codes: Tensor = (packed.unsqueeze(2) >> _shifts(packed, bits)) & (2**bits - 1)
    return codes.flatten(1)[:, :width]


def _shifts(codes: Tensor, bits: int) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)


def _encode(rows: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes (n, D) uint8, scale and bias (n,) of the rows (n, D) float32."""
    low, high = rows.aminmax(dim=1)
    most = 2**bits - 1
    if bits == 8:
        span = high - low
        scale, bias, inverse = span / most, low, most / (span + _EPSILON)
    else:
        bias = low.half()
        span = high - bias.float()
        scale = torch.where(span == 0, 1.0, span / most).half()
        inverse = 1 / scale.float()
        # A range too small for float16: every code is near 0, whatever the scale.
        inverse = torch.where(inverse.isinf(), 1.0, inverse)
        scale = torch.where(scale == 0, 1.0, scale)
    units = (rows - bias.float().unsqueeze(1)) * inverse.unsqueeze(1)
    return units.round().clamp(0, most).to(torch.uint8), scale, bias
