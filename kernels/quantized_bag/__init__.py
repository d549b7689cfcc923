"""Bags of rows stored in 8, 4 or 2 bits with a scale and a bias each; for serving, no gradient.

    out[b, f] = pool over i in bag of  a_i * (code_i * scale_i + bias_i)

Shapes: `N` ids, `F` features, `B` examples, `D` width, `R` rows, `LD` bytes of a stored row.
"""

from typing import Any

import torch
from torch import Tensor

from recemb.kernels import bag_layout
from recemb.kernels.quantized_bag import reference
from recemb.kernels.quantized_bag.check import check_packed, check_width
from recemb.kernels.quantized_bag.fbgemm_rows import FBGEMM_LAYOUTS, from_fbgemm, to_fbgemm
from recemb.kernels.quantized_bag.reference import row_bytes

__all__ = [
    "FBGEMM_LAYOUTS",
    "dequantize_rows",
    "from_fbgemm",
    "quantize_rows",
    "quantized_bag",
    "row_bytes",
    "to_fbgemm",
]


def quantize_rows(weight: Tensor, bits: int) -> Tensor:
    """Return the rows in `bits` bits per element, (R, LD) uint8, LD = `row_bytes(D, bits)`.

    Each row's scale is (max - min) / (2^bits - 1) and its bias min, rounded to float16; codes are
    rounded to nearest for the scale and bias as stored, and clamped. Synchronises the device.

    Args:
        weight: (R, D) floating, finite; D a multiple of 8 / bits.
        bits: 8, 4 or 2.

    Raises:
        ValueError: if shapes or bits do not fit, or a scale or bias is beyond float16.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"quantize_rows: weight must be (R, D) floating, got {tuple(weight.shape)} "
            f"{weight.dtype}"
        )
    check_width("quantize_rows", weight.shape[1], bits)
    rows = weight.to(bag_layout.accumulator(weight.dtype))
    low, high = rows.aminmax(dim=1, keepdim=True)
    scale_bias = torch.cat([(high - low) / (2**bits - 1), low], dim=1).to(torch.float16)
    if not bool(scale_bias.isfinite().all()):
        raise ValueError(
            "quantize_rows: a row has an element that is not finite, or needs a scale or bias "
            "beyond float16's 65504; clip or scale the weights"
        )
    scale, bias = scale_bias[:, :1].to(rows.dtype), scale_bias[:, 1:].to(rows.dtype)
    codes = (rows - bias) / torch.where(scale > 0, scale, 1)
    codes = codes.round().clamp(0, 2**bits - 1) * (scale > 0)
    return reference.assemble(codes.to(torch.uint8), scale_bias, bits)


def dequantize_rows(
    packed: Tensor, width: int, bits: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the rows (R, D) that `packed` (R, LD) stands for, computed in at least float32.

    Raises:
        ValueError: if `packed` is no uint8 table of that width.
    """
    check_packed("dequantize_rows", packed, width, bits)
    rows = reference.dequantize(packed, width, bits, bag_layout.accumulator(dtype))
    return rows.to(dtype)


def quantized_bag(
    packed: Tensor,
    values: Tensor,
    offsets: Tensor | None = None,
    *,
    width: int,
    bits: int,
    num_features: int = 1,
    weights: Tensor | None = None,
    pooling: str = "sum",
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return pooled rows (B, F, D) of a quantised table, in `out_dtype`.

    DETERMINISM: bit-equal repeats; no atomics.
    ACCUMULATION: float32, in the order of the ids.
    SAVED FOR BACKWARD: nothing; there is no gradient.

    Args:
        packed: (R, LD) uint8, from `quantize_rows`. All tables, in turn.
        values: (N,) int32 or int64, row numbers in `packed`, feature by feature. Negative ones are
            absent: they add nothing and do not count in a mean. Those of R or more are not checked
            and must not occur: on a GPU they read foreign memory.
        offsets: (F * B + 1,) int32 or int64, from 0 to N; None if every bag has one id.
        width: D, a multiple of 8 / bits.
        bits: 8, 4 or 2.
        num_features: F.
        weights: (N,) floating, what multiplies each row.
        pooling: "sum" or "mean"; the mean divides by the number of present ids, weighted or not.
        out_dtype: float32, float16 or bfloat16; float64 on a CPU, which then adds in float64.

    Raises:
        ValueError: if shapes, types or options do not fit together.

    Source:
        Row-wise min-max quantisation as in FBGEMM's table-batched inference lookup; the planar
        order of the elements is ours.

    Example:
        >>> packed = quantize_rows(torch.tensor([[0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]]), 2)
        >>> quantized_bag(packed, torch.tensor([0, 1]), torch.tensor([0, 2]), width=4, bits=2)
        tensor([[[1., 4., 2., 3.]]])
    """
    bag_layout.check_bags("quantized_bag", values, offsets, weights, num_features, pooling)
    check_packed("quantized_bag", packed, width, bits)
    if not out_dtype.is_floating_point:
        raise ValueError(f"quantized_bag: out_dtype must be floating, got {out_dtype}")
    out: Tensor = torch.ops.recemb.quantized_bag(
        packed, values, offsets, weights, width, bits, num_features, pooling == "mean", out_dtype
    )
    return out


torch.library.define(
    "recemb::quantized_bag",
    "(Tensor packed, Tensor values, Tensor? offsets, Tensor? weights, int width, int bits, "
    "int num_features, bool mean, ScalarType out_dtype) -> Tensor",
)
torch.library.impl("recemb::quantized_bag", "cpu", reference.forward)


@torch.library.impl("recemb::quantized_bag", "cuda")
def _forward_cuda(*arguments: Any) -> Tensor:
    from recemb.kernels.quantized_bag import kernel

    return kernel.quantized_bag_forward(*arguments)


def _forward_fake(
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
    examples = bag_layout.num_bags(values, offsets) // num_features
    return packed.new_empty(examples, num_features, width, dtype=out_dtype)


torch.library.register_fake("recemb::quantized_bag", _forward_fake)
