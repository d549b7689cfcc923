"""Quantised rows in plain torch, written to be read; also the path on a CPU.

Shapes: `N` ids, `F` features, `B` examples, `D` width, `R` rows, `P` = D * bits / 8 payload bytes,
`LD` bytes of a row: P payload bytes, zeros up to a multiple of 16, and in the last four bytes the
scale and the bias, float16. Byte j holds elements j, j + P, j + 2P, .. from its low bits upwards.
"""

import torch
from torch import Tensor

from recemb.kernels import bag_layout

ROW_ALIGNMENT_BYTES = 16
HEADER_BYTES = 4


def row_bytes(width: int, bits: int) -> int:
    """Return LD."""
    used = width * bits // 8 + HEADER_BYTES
    return -(-used // ROW_ALIGNMENT_BYTES) * ROW_ALIGNMENT_BYTES


def pack_planes(codes: Tensor, bits: int) -> Tensor:
    """Return bytes (R, P) of the codes (R, D), uint8 in [0, 2^bits)."""
    planes = codes.view(codes.shape[0], 8 // bits, codes.shape[1] * bits // 8)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return (planes << shifts.view(1, -1, 1)).sum(1, dtype=torch.uint8)


def unpack_planes(payload: Tensor, bits: int) -> Tensor:
    """Return codes (R, D) uint8 of the bytes (R, P)."""
    mask = (1 << bits) - 1
    return torch.cat([(payload >> shift) & mask for shift in range(0, 8, bits)], dim=1)


def assemble(codes: Tensor, scale_bias: Tensor, bits: int) -> Tensor:
    """Return rows (R, LD) uint8 of codes (R, D) and scale and bias (R, 2) float16."""
    num_rows, width = codes.shape
    packed = codes.new_zeros(num_rows, row_bytes(width, bits))
    packed[:, : width * bits // 8] = pack_planes(codes, bits)
    packed[:, -HEADER_BYTES:] = scale_bias.contiguous().view(torch.uint8)
    return packed


def scale_and_bias(packed: Tensor) -> Tensor:
    """Return scale and bias (R, 2) float16 of the rows (R, LD)."""
    return packed[:, -HEADER_BYTES:].contiguous().view(torch.float16)


def dequantize(packed: Tensor, width: int, bits: int, dtype: torch.dtype) -> Tensor:
    """Return code * scale + bias (R, D)."""
    codes = unpack_planes(packed[:, : width * bits // 8], bits).to(dtype)
    scale_bias = scale_and_bias(packed).to(dtype)
    return codes * scale_bias[:, :1] + scale_bias[:, 1:]


def forward(
    packed: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    width: int,
    bits: int,
    num_features: int,
    mean: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return the pooled rows (B, F, D); the arguments are those of the op."""
    dtype = bag_layout.accumulator(out_dtype)
    total_bags = bag_layout.num_bags(values, offsets)
    bags = bag_layout.bag_of_lookup(values, offsets)
    present = values >= 0
    scale = bag_layout.lookup_scale(present, bags, total_bags, dtype, mean=mean)
    if weights is not None:
        scale = scale * torch.where(present, weights, 0)
    if packed.shape[0]:
        rows = dequantize(packed[values.clamp_min(0)], width, bits, dtype)
        # Of an absent id nothing may be seen, not even a NaN in row 0.
        rows = torch.where(present.unsqueeze(1), rows, 0)
    else:
        rows = torch.zeros(values.shape[0], width, dtype=dtype, device=packed.device)
    pooled = bag_layout.sum_bags(rows * scale.unsqueeze(1), offsets)
    return bag_layout.to_examples(pooled.to(out_dtype), num_features)
