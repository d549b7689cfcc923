"""The masked bag in plain torch, written to be read; also the path on a CPU.

Shapes: `N` ids, `F` features, `B` examples, `D` width, `R` rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from recemb.kernels import bag_layout


class _Lookups(NamedTuple):
    """What forward and backward share, one entry per id, in the accumulator's type.

    Attributes:
        row: (N, D) the row read, zero for an absent id.
        prefix: (N, D) one where d < k.
        normed: (N, D) what the norm is taken of.
        norm_scale: (N, 1) what multiplies the norm.
        margin: (N, 1) norm less threshold.
        keep: (N, 1) one where the row passes.
        scale: (N, 1) one over the number of ids for a mean; zero for an absent id.
        features: (N,) feature of the id.
        bags: (N,) bag of the id.
    """

    row: Tensor
    prefix: Tensor
    normed: Tensor
    norm_scale: Tensor
    margin: Tensor
    keep: Tensor
    scale: Tensor
    features: Tensor
    bags: Tensor


def forward(
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
) -> Tensor:
    """Return the pooled masked rows (B, F, D); the arguments are those of the op."""
    at = _look_up(
        weight, values, offsets, thresholds, lookup_widths, feature_widths,
        num_features, mean, norm, norm_of_prefix,
    )  # fmt: skip
    scale = at.scale if weights is None else at.scale * weights.unsqueeze(1)
    pooled = bag_layout.sum_bags(at.row * at.prefix * (at.keep * scale), offsets)
    return bag_layout.to_examples(pooled.to(weight.dtype), num_features)


def backward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of rows (N, D), thresholds (F,) or (0,), and weights (N,) or (0,)."""
    at = _look_up(
        weight, values, offsets, thresholds, lookup_widths, feature_widths,
        num_features, mean, norm, norm_of_prefix,
    )  # fmt: skip
    grad_bag = bag_layout.to_bags(grad).to(at.row.dtype)[at.bags] * at.prefix * at.scale
    product = (grad_bag * at.row).sum(1, keepdim=True)
    grad_weights = weight.new_empty(0, dtype=at.row.dtype)
    if weights is not None:
        grad_weights = (at.keep * product).squeeze(1)
        factor = weights.to(at.row.dtype).unsqueeze(1)
        grad_bag, product = grad_bag * factor, product * factor
    grad_rows = at.keep * grad_bag
    grad_thresholds = weight.new_empty(0, dtype=at.row.dtype)
    if thresholds is not None:
        slope = surrogate(at.margin) * product
        grad_rows = grad_rows + slope * at.norm_scale * _norm_gradient(at.normed, norm)
        grad_thresholds = slope.new_zeros(num_features).index_add_(
            0, at.features, -slope.squeeze(1)
        )
    return grad_rows, grad_thresholds, grad_weights


def surrogate(margin: Tensor) -> Tensor:
    """Return the long-tailed stand-in for the derivative of the step.

    2 - 4 |x| up to 0.4, then 0.4 up to 1, then 0.
    """
    size = margin.abs()
    return torch.where(size <= 0.4, 2 - 4 * size, torch.where(size <= 1, 0.4, 0.0))


def row_norm(rows: Tensor, norm: int) -> Tensor:
    """Return the norm (N, 1) of each row (N, D), of order 1 or 2."""
    if norm == 1:
        return rows.abs().sum(1, keepdim=True)
    return rows.square().sum(1, keepdim=True).sqrt()


def _norm_gradient(rows: Tensor, norm: int) -> Tensor:
    """Return the derivative (N, D) of each row's norm; zero for a row of zeros."""
    if norm == 1:
        return rows.sign()
    size = row_norm(rows, 2)
    return rows / torch.where(size > 0, size, 1)


def _look_up(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    thresholds: Tensor | None,
    lookup_widths: Tensor | None,
    feature_widths: Tensor | None,
    num_features: int,
    mean: bool,
    norm: int,
    norm_of_prefix: bool,
) -> _Lookups:
    dtype = bag_layout.accumulator(weight.dtype)
    total_bags = bag_layout.num_bags(values, offsets)
    bags = bag_layout.bag_of_lookup(values, offsets)
    features = bag_layout.feature_of_lookup(bags, total_bags, num_features)
    present = (values >= 0) & (values < weight.shape[0])
    scale = bag_layout.lookup_scale(present, bags, total_bags, dtype, mean=mean).unsqueeze(1)
    if weight.shape[0]:
        row = weight[torch.where(present, values, 0)].to(dtype) * present.unsqueeze(1)
    else:
        row = weight.new_zeros(values.shape[0], weight.shape[1], dtype=dtype)
    prefix = torch.ones_like(row)
    norm_scale = torch.ones_like(scale)
    widths = feature_widths[features] if feature_widths is not None else lookup_widths
    if widths is not None:
        column = torch.arange(weight.shape[1], device=weight.device)
        prefix = (column < widths.unsqueeze(1)).to(dtype)
        if norm_of_prefix:
            norm_scale = weight.shape[1] / widths.clamp_min(1).to(dtype).unsqueeze(1)
    normed = row * prefix if norm_of_prefix else row
    margin, keep = torch.ones_like(scale), torch.ones_like(scale)
    if thresholds is not None:
        limit = thresholds.to(dtype)[features].unsqueeze(1)
        margin = row_norm(normed, norm) * norm_scale - limit
        keep = (margin > 0).to(dtype)
    return _Lookups(row, prefix, normed, norm_scale, margin, keep, scale, features, bags)
