"""The masked bag in Triton: one program per block of bags, forward and backward.

Shapes: `N` ids, `F` features, `B` examples, `D` width, `R` rows; a program holds BLOCK_B bags as a
column (BLOCK_B, 1) and rows as (BLOCK_B, BLOCK_D). Neither kernel has an atomic or a second writer.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recemb.kernels import bag_layout, bag_tile
from recemb.kernels.bag_tile import bag_bounds, load_id


@triton.jit
def _widths_of(lookup_widths, feature_widths, position, is_id, feature, inside, D: tl.constexpr,
               LOOKUP_WIDTH: tl.constexpr, FEATURE_WIDTH: tl.constexpr):  # fmt: skip
    """Return how many leading columns each lookup keeps, (BLOCK_B, 1) int32."""
    if LOOKUP_WIDTH:
        width = tl.load(lookup_widths + position, mask=is_id, other=0).to(tl.int32)
    elif FEATURE_WIDTH:
        width = tl.load(feature_widths + feature, mask=inside, other=0).to(tl.int32)
    else:
        width = is_id.to(tl.int32) * D
    return width


@triton.jit
def _margin(w, prefix, width, limit, D: tl.constexpr, NORM: tl.constexpr,
            NORM_OF_PREFIX: tl.constexpr):  # fmt: skip
    """Return norm - threshold (BLOCK_B, 1), the norm's scale, and its derivative by the row."""
    normed = w
    scale = tl.full(limit.shape, 1.0, tl.float32)
    if NORM_OF_PREFIX:
        normed = tl.where(prefix, w, 0.0)
        scale = D / tl.maximum(width, 1).to(tl.float32)
    if NORM == 1:
        size = tl.sum(tl.abs(normed), axis=1, keep_dims=True)
        slope = tl.where(normed > 0, 1.0, tl.where(normed < 0, -1.0, 0.0))
    else:
        size = tl.sqrt(tl.sum(normed * normed, axis=1, keep_dims=True))
        slope = normed / tl.where(size > 0, size, 1.0)
    return size * scale - limit, scale, slope


@triton.jit
def _masked_bag_forward_kernel(
    weight, values, offsets, thresholds, lookup_widths, feature_widths, weights, out,
    num_rows, num_bags, num_examples, num_features,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr, UNROLL: tl.constexpr,
    JAGGED: tl.constexpr, WEIGHTED: tl.constexpr, MEAN: tl.constexpr, THRESHOLD: tl.constexpr,
    LOOKUP_WIDTH: tl.constexpr, FEATURE_WIDTH: tl.constexpr, NORM: tl.constexpr,
    NORM_OF_PREFIX: tl.constexpr,
):  # fmt: skip
    """Write out[b, f] = sum or mean of a_i * [norm(w_i) > t_f] * prefix(w_i, k_i)."""
    bag = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    inside = bag < num_bags
    feature = bag // num_examples
    start, length = bag_bounds(offsets, bag.to(tl.int64), inside, JAGGED)
    d = tl.arange(0, BLOCK_D)[None, :]
    limit = tl.zeros([BLOCK_B, 1], tl.float32)
    if THRESHOLD:
        limit = tl.load(thresholds + feature, mask=inside, other=0).to(tl.float32)
    total = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    count = tl.zeros([BLOCK_B, 1], tl.float32)
    for first in range(0, tl.max(length), UNROLL):
        for step in tl.static_range(UNROLL):
            is_id = first + step < length
            position = start + first + step
            row = load_id(values, position, is_id)
            present = (row >= 0) & (row < num_rows)
            w = tl.load(weight + row * D + d, mask=present & (d < D), other=0).to(tl.float32)
            width = _widths_of(lookup_widths, feature_widths, position, is_id, feature, inside,
                               D, LOOKUP_WIDTH, FEATURE_WIDTH)  # fmt: skip
            prefix = d < width
            factor = present.to(tl.float32)
            count += factor
            if WEIGHTED:
                factor *= tl.load(weights + position, mask=is_id, other=0).to(tl.float32)
            if THRESHOLD:
                margin, _, _ = _margin(w, prefix, width, limit, D, NORM, NORM_OF_PREFIX)
                factor = tl.where(margin > 0, factor, 0.0)
            total += tl.where(prefix, w, 0.0) * factor
    if MEAN:
        total = total / tl.maximum(count, 1.0)
    to = (bag % num_examples).to(tl.int64) * num_features + feature
    tl.store(out + to * D + d, total, mask=inside & (d < D))


@triton.jit
def _masked_bag_backward_kernel(
    grad, weight, values, offsets, thresholds, lookup_widths, feature_widths, weights,
    grad_rows, bag_thresholds, grad_weights,
    num_rows, num_bags, num_examples, num_features,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr, UNROLL: tl.constexpr,
    JAGGED: tl.constexpr, WEIGHTED: tl.constexpr, MEAN: tl.constexpr, THRESHOLD: tl.constexpr,
    LOOKUP_WIDTH: tl.constexpr, FEATURE_WIDTH: tl.constexpr, NORM: tl.constexpr,
    NORM_OF_PREFIX: tl.constexpr,
):  # fmt: skip
    """Write the gradient of every row looked up, of the thresholds by bag, and of the weights."""
    bag = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    inside = bag < num_bags
    feature = bag // num_examples
    start, length = bag_bounds(offsets, bag.to(tl.int64), inside, JAGGED)
    d = tl.arange(0, BLOCK_D)[None, :]
    limit = tl.zeros([BLOCK_B, 1], tl.float32)
    if THRESHOLD:
        limit = tl.load(thresholds + feature, mask=inside, other=0).to(tl.float32)
    source = (bag % num_examples).to(tl.int64) * num_features + feature
    g_bag = tl.load(grad + source * D + d, mask=inside & (d < D), other=0).to(tl.float32)
    longest = tl.max(length)
    if MEAN:
        count = tl.zeros([BLOCK_B, 1], tl.float32)
        for at in range(0, longest):
            row = load_id(values, start + at, at < length)
            count += ((row >= 0) & (row < num_rows)).to(tl.float32)
        g_bag = g_bag / tl.maximum(count, 1.0)
    d_limit = tl.zeros([BLOCK_B, 1], tl.float32)
    for first in range(0, longest, UNROLL):
        for step in tl.static_range(UNROLL):
            is_id = first + step < length
            position = start + first + step
            row = load_id(values, position, is_id)
            present = (row >= 0) & (row < num_rows)
            w = tl.load(weight + row * D + d, mask=present & (d < D), other=0).to(tl.float32)
            width = _widths_of(lookup_widths, feature_widths, position, is_id, feature, inside,
                               D, LOOKUP_WIDTH, FEATURE_WIDTH)  # fmt: skip
            prefix = d < width
            g = tl.where(prefix & present, g_bag, 0.0)
            keep = tl.full([BLOCK_B, 1], 1.0, tl.float32)
            slope = tl.zeros([BLOCK_B, 1], tl.float32)
            d_norm = w
            product = tl.sum(g * w, axis=1, keep_dims=True)
            if THRESHOLD:
                margin, scale, d_norm = _margin(w, prefix, width, limit, D, NORM, NORM_OF_PREFIX)
                keep = tl.where(margin > 0, 1.0, 0.0)
                size = tl.abs(margin)
                slope = tl.where(size <= 0.4, 2.0 - 4.0 * size, tl.where(size <= 1.0, 0.4, 0.0))
                slope = slope * product
                d_norm = d_norm * scale
            if WEIGHTED:
                tl.store(grad_weights + position, keep * product, mask=is_id)
                a = tl.load(weights + position, mask=is_id, other=0).to(tl.float32)
                g = g * a
                slope = slope * a
            g = g * keep
            if THRESHOLD:
                d_limit -= slope
                g += slope * d_norm
            tl.store(grad_rows + position * D + d, g, mask=is_id & (d < D))
    if THRESHOLD:
        tl.store(bag_thresholds + bag, d_limit, mask=inside)


def masked_bag_forward(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    thresholds: Tensor | None,
    lookup_widths: Tensor | None,
    feature_widths: Tensor | None,
    weights: Tensor | None,
    num_features: int,
    mean: bool,
    norm: int,
    norm_of_prefix: bool,
    block_bags: int | None = None,
) -> Tensor:
    """Return the pooled masked rows (B, F, D); the arguments are those of the op.

    `block_bags` is BLOCK_B, for tests.
    """
    bag_tile.check_weight("masked_bag", weight)
    width, total_bags = weight.shape[1], bag_layout.num_bags(values, offsets)
    num_examples = total_bags // num_features
    out = torch.empty(num_examples, num_features, width, dtype=weight.dtype, device=weight.device)
    if not out.numel():
        return out
    is_large = offsets is not None and weight.itemsize > 2
    # Two steps of more float32 rows at a time would spill.
    elements = 1024 if is_large else 2048
    block = block_bags or bag_tile.bags_per_program(width, total_bags, elements=elements)
    optional = (offsets, thresholds, lookup_widths, feature_widths, weights)
    _masked_bag_forward_kernel[(triton.cdiv(total_bags, block),)](
        weight, values.contiguous(), *_pointers(optional, values), out,
        weight.shape[0], total_bags, num_examples, num_features,
        **_constants(width, block, optional, mean, norm, norm_of_prefix),
    )  # fmt: skip
    return out


def masked_bag_backward(
    grad: Tensor,
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    thresholds: Tensor | None,
    lookup_widths: Tensor | None,
    feature_widths: Tensor | None,
    weights: Tensor | None,
    num_features: int,
    mean: bool,
    norm: int,
    norm_of_prefix: bool,
    block_bags: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of rows (N, D), thresholds (F,) or (0,), and weights (N,) or (0,)."""
    bag_tile.check_weight("masked_bag", weight)
    width, total_bags = weight.shape[1], bag_layout.num_bags(values, offsets)
    num_examples = total_bags // num_features
    num_ids, device = values.shape[0], weight.device
    grad_rows = torch.empty(num_ids, width, dtype=torch.float32, device=device)
    by_bag = torch.empty(
        0 if thresholds is None else total_bags, dtype=torch.float32, device=device
    )
    grad_weights = torch.empty(
        0 if weights is None else num_ids, dtype=torch.float32, device=device
    )
    block = block_bags or bag_tile.bags_per_program(width, total_bags, elements=1024)
    optional = (offsets, thresholds, lookup_widths, feature_widths, weights)
    if total_bags:
        _masked_bag_backward_kernel[(triton.cdiv(total_bags, block),)](
            grad.contiguous(), weight, values.contiguous(), *_pointers(optional, values),
            grad_rows, by_bag, grad_weights,
            weight.shape[0], total_bags, num_examples, num_features,
            **_constants(width, block, optional, mean, norm, norm_of_prefix),
        )  # fmt: skip
    if thresholds is None:
        return grad_rows, by_bag, grad_weights
    return grad_rows, by_bag.view(num_features, num_examples).sum(1), grad_weights


def _pointers(optional: tuple[Tensor | None, ...], stand_in: Tensor) -> list[Tensor]:
    """Return contiguous tensors; `stand_in` for those that the kernel will not read."""
    return [stand_in if tensor is None else tensor.contiguous() for tensor in optional]


def _constants(
    width: int,
    block: int,
    optional: tuple[Tensor | None, ...],
    mean: bool,
    norm: int,
    norm_of_prefix: bool,
) -> dict[str, object]:
    offsets, thresholds, lookup_widths, feature_widths, weights = optional
    return {
        "D": width,
        "BLOCK_D": triton.next_power_of_2(width),
        "BLOCK_B": block,
        "UNROLL": 1 if offsets is None else 2,
        "JAGGED": offsets is not None,
        "WEIGHTED": weights is not None,
        "MEAN": mean,
        "THRESHOLD": thresholds is not None,
        "LOOKUP_WIDTH": lookup_widths is not None,
        "FEATURE_WIDTH": feature_widths is not None,
        "NORM": norm,
        "NORM_OF_PREFIX": norm_of_prefix,
        **bag_tile.launch_options(),
    }
