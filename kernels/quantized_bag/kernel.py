"""The quantised bag in Triton: one program per block of bags; one writer per output, no atomics.

Shapes: `P` payload bytes of a row, `LD` bytes of a row; a program holds BLOCK_B bags as a column
(BLOCK_B, 1), and for each of the 8 / BITS planes a sum (BLOCK_B, BLOCK_P).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recemb.kernels import bag_layout, bag_tile
from recemb.kernels.bag_tile import bag_bounds, load_id


@triton.jit
def _add_plane(total, byte, present, scale, bias, BITS: tl.constexpr, PLANE: tl.constexpr):
    """Return `total` plus the elements in one plane of the bytes."""
    code = (byte >> (BITS * PLANE)) & ((1 << BITS) - 1)
    return total + tl.where(present, code.to(tl.float32) * scale + bias, 0.0)


@triton.jit
def _quantized_bag_kernel(
    packed, halves, values, offsets, weights, out, num_bags, num_examples, num_features,
    P: tl.constexpr, LD: tl.constexpr, BITS: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_B: tl.constexpr, UNROLL: tl.constexpr, JAGGED: tl.constexpr, WEIGHTED: tl.constexpr,
    MEAN: tl.constexpr,
):  # fmt: skip
    """Write out[b, f] = sum or mean of a_i * (code_i * scale_i + bias_i)."""
    bag = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    inside = bag < num_bags
    start, length = bag_bounds(offsets, bag.to(tl.int64), inside, JAGGED)
    p = tl.arange(0, BLOCK_P)[None, :]
    total0 = tl.zeros([BLOCK_B, BLOCK_P], tl.float32)
    total1 = tl.zeros([BLOCK_B, BLOCK_P], tl.float32)
    total2 = tl.zeros([BLOCK_B, BLOCK_P], tl.float32)
    total3 = tl.zeros([BLOCK_B, BLOCK_P], tl.float32)
    count = tl.zeros([BLOCK_B, 1], tl.float32)
    for first in range(0, tl.max(length), UNROLL):
        for step in tl.static_range(UNROLL):
            is_id = first + step < length
            position = start + first + step
            row = load_id(values, position, is_id)
            present = row >= 0
            byte = tl.load(packed + row * LD + p, mask=present & (p < P), other=0).to(tl.int32)
            header = halves + row * (LD // 2) + (LD // 2 - 2)
            scale = tl.load(header, mask=present, other=0).to(tl.float32)
            bias = tl.load(header + 1, mask=present, other=0).to(tl.float32)
            count += present.to(tl.float32)
            if WEIGHTED:
                a = tl.load(weights + position, mask=is_id, other=0).to(tl.float32)
                scale = scale * a
                bias = bias * a
            total0 = _add_plane(total0, byte, present, scale, bias, BITS, 0)
            if BITS <= 4:
                total1 = _add_plane(total1, byte, present, scale, bias, BITS, 1)
            if BITS == 2:
                total2 = _add_plane(total2, byte, present, scale, bias, BITS, 2)
                total3 = _add_plane(total3, byte, present, scale, bias, BITS, 3)
    divisor = tl.full([BLOCK_B, 1], 1.0, tl.float32)
    if MEAN:
        divisor = tl.maximum(count, 1.0)
    to_bag = (bag % num_examples).to(tl.int64) * num_features + bag // num_examples
    to = out + to_bag * (P * 8 // BITS) + p
    mask = inside & (p < P)
    tl.store(to, total0 / divisor, mask=mask)
    if BITS <= 4:
        tl.store(to + P, total1 / divisor, mask=mask)
    if BITS == 2:
        tl.store(to + 2 * P, total2 / divisor, mask=mask)
        tl.store(to + 3 * P, total3 / divisor, mask=mask)


def quantized_bag_forward(
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
    if out_dtype not in bag_tile.WEIGHT_DTYPES:
        raise ValueError(
            f"quantized_bag: the kernel writes {bag_tile.WEIGHT_DTYPES}, got {out_dtype}; "
            "choose one of those or run on a CPU"
        )
    if not packed.is_contiguous():
        raise ValueError("quantized_bag: packed must be contiguous; call .contiguous() once")
    total_bags = bag_layout.num_bags(values, offsets)
    num_examples = total_bags // num_features
    out = torch.empty(num_examples, num_features, width, dtype=out_dtype, device=packed.device)
    if not out.numel():
        return out
    block = bag_tile.bags_per_program(width, total_bags, elements=elements_per_program(bits))
    payload = width * bits // 8
    _quantized_bag_kernel[(triton.cdiv(total_bags, block),)](
        packed, packed.view(torch.float16), values.contiguous(),
        values if offsets is None else offsets.contiguous(),
        values if weights is None else weights.contiguous(), out,
        total_bags, num_examples, num_features,
        P=payload, LD=packed.shape[1], BITS=bits, BLOCK_P=triton.next_power_of_2(payload),
        BLOCK_B=block, UNROLL=1 if offsets is None else 2, JAGGED=offsets is not None,
        WEIGHTED=weights is not None, MEAN=mean, **bag_tile.launch_options(),
    )  # fmt: skip
    return out


def elements_per_program(bits: int) -> int:
    """Return BLOCK_B * D: 16 payload bytes per thread of four warps of 32, which load at once.

    In 2 bits those would be 64 elements, too many for the registers; there it is 4 bytes.
    """
    return 4096 if bits == 4 else 2048
