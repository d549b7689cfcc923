"""Quantised rows as FBGEMM stores them, to and from ours; plain torch, needs no FBGEMM.

FBGEMM puts element j into byte j // E, E = 8 / bits, from the low bits upwards, where ours is
planar. Its layouts, by where scale and bias lie and how wide they are:

    float32_last   payload, scale, bias    FloatToFused8BitRowwiseQuantized; 8 bits only
    float16_last   payload, scale, bias    FloatToFusedNBitRowwiseQuantizedSBHalf
    float16_first  scale, bias, payload    the table-batched inference lookup; rows may be padded

Shapes: `D` width, `R` rows, `P` = D * bits / 8 payload bytes, `LD` bytes of our rows, `LF` bytes of
FBGEMM's.
"""

import torch
from torch import Tensor

from recemb.kernels.quantized_bag import reference
from recemb.kernels.quantized_bag.check import check_packed, check_width

FBGEMM_LAYOUTS = ("float32_last", "float16_last", "float16_first")


def from_fbgemm(rows: Tensor, width: int, bits: int, *, layout: str) -> Tensor:
    """Return our rows (R, LD) uint8 of FBGEMM's.

    The codes are kept. So are scale and bias, except that float32 ones are rounded to float16: a
    value moves by at most 2^-11 of its bias and of its distance from it. Synchronises the device.

    Args:
        rows: (R, LF) uint8; LF is what the layout needs, or more in "float16_first".
        width: D.
        bits: 8, 4 or 2.
        layout: one of FBGEMM_LAYOUTS.

    Raises:
        ValueError: if `rows` is no table of that width and layout, or has a scale or bias that
            float16 cannot hold.

    Example:
        >>> header = torch.tensor([2.0, 1.0], dtype=torch.float16).view(torch.uint8)
        >>> theirs = torch.cat([torch.tensor([0x10, 0x32]).to(torch.uint8), header]).view(1, -1)
        >>> from recemb.kernels.quantized_bag import dequantize_rows
        >>> dequantize_rows(from_fbgemm(theirs, 4, 4, layout="float16_last"), 4, 4)
        tensor([[1., 3., 5., 7.]])
    """
    owner = "from_fbgemm"
    check_width(owner, width, bits)
    header_bytes = _header_bytes(owner, bits, layout)
    payload_bytes = width * bits // 8
    needed = payload_bytes + header_bytes
    is_padded = layout == "float16_first" and rows.dim() == 2 and rows.shape[1] > needed
    if rows.dtype != torch.uint8 or rows.dim() != 2 or (rows.shape[1] != needed and not is_padded):
        raise ValueError(
            f"{owner}: rows must be (R, {needed}) uint8 for width {width} in {bits} bits and "
            f"layout '{layout}', got {tuple(rows.shape)} {rows.dtype}"
        )
    if layout == "float16_first":
        header, payload = rows[:, :header_bytes], rows[:, header_bytes:needed]
    else:
        payload, header = rows[:, :payload_bytes], rows[:, payload_bytes:]
    wide = torch.float32 if layout == "float32_last" else torch.float16
    # A copy, for a view of wider numbers must begin at a multiple of their size.
    aligned = header.clone(memory_format=torch.contiguous_format)
    scale_bias = aligned.view(wide).to(torch.float16)
    if not bool(scale_bias.isfinite().all()):
        raise ValueError(
            f"{owner}: a scale or bias is not finite, or beyond float16's 65504; dequantise the "
            "rows, clip or scale them, and use quantize_rows"
        )
    return reference.assemble(_deinterleave(payload, bits), scale_bias, bits)


def to_fbgemm(
    packed: Tensor, width: int, bits: int, *, layout: str, row_alignment: int = 1
) -> Tensor:
    """Return FBGEMM's rows (R, LF) uint8 of ours; no value changes.

    Args:
        packed: (R, LD) uint8, from `quantize_rows`.
        width: D.
        bits: 8, 4 or 2.
        layout: one of FBGEMM_LAYOUTS.
        row_alignment: LF is made a multiple of it by zeros at the end, in "float16_first" only;
            the lookup's `row_alignment`, 16 on a GPU.

    Raises:
        ValueError: if `packed` is no table of that width, or the layout cannot hold it: FBGEMM's
            float16 needs P to be even.
    """
    owner = "to_fbgemm"
    check_packed(owner, packed, width, bits)
    header_bytes = _header_bytes(owner, bits, layout)
    payload_bytes = width * bits // 8
    if header_bytes == reference.HEADER_BYTES and payload_bytes % 2:
        raise ValueError(
            f"{owner}: layout '{layout}' needs an even number of payload bytes, "
            f"got {payload_bytes} for width {width} in {bits} bits; pad the rows to a width that "
            f"is a multiple of {16 // bits}"
        )
    if row_alignment < 1 or (row_alignment > 1 and layout != "float16_first"):
        raise ValueError(
            f"{owner}: row_alignment must be at least 1, and 1 unless the layout is "
            f"'float16_first', got {row_alignment} with '{layout}'"
        )
    codes = reference.unpack_planes(packed[:, :payload_bytes], bits)
    wide = torch.float32 if layout == "float32_last" else torch.float16
    header = reference.scale_and_bias(packed).to(wide).view(torch.uint8)
    parts = [_interleave(codes, bits), header]
    if layout == "float16_first":
        padding = -(payload_bytes + header_bytes) % row_alignment
        parts = [*reversed(parts), packed.new_zeros(packed.shape[0], padding)]
    return torch.cat(parts, dim=1)


def _header_bytes(owner: str, bits: int, layout: str) -> int:
    """Return the bytes of scale and bias."""
    if layout not in FBGEMM_LAYOUTS:
        raise ValueError(f"{owner}: layout must be one of {FBGEMM_LAYOUTS}, got {layout!r}")
    if layout != "float32_last":
        return reference.HEADER_BYTES
    if bits != 8:
        raise ValueError(
            f"{owner}: layout 'float32_last' is of 8 bits alone, got {bits}; use 'float16_last'"
        )
    return 2 * reference.HEADER_BYTES


def _interleave(codes: Tensor, bits: int) -> Tensor:
    """Return bytes (R, P), neighbours in one byte, of the codes (R, D)."""
    neighbours = codes.view(codes.shape[0], codes.shape[1] * bits // 8, 8 // bits)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return (neighbours << shifts).sum(2, dtype=torch.uint8)


def _deinterleave(payload: Tensor, bits: int) -> Tensor:
    """Return codes (R, D) of the bytes (R, P), neighbours in one byte."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=payload.device)
    return ((payload.unsqueeze(2) >> shifts) & ((1 << bits) - 1)).flatten(1)
