"""The composed bag in plain torch, written to be read; also the path on a CPU.

Shapes: `N` ids, `F` features, `B` examples, `K` factors, `D` width, `R` rows, `P` importances.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from recemb.kernels import bag_layout
from recemb.kernels.hashing import hash_rows

MAX_DIGIT_ID = 2**31
"""Ids from here on have no digits: they are divided as 32-bit numbers."""


class _Lookups(NamedTuple):
    """What forward and backward share, in the accumulator's type.

    Attributes:
        rows: (N, K) row of each factor in the weights, -1 for an absent id.
        factors: (N, K, D) the rows read, zero for an absent id.
        importance_rows: (N,) row of the importances, -1 for an absent id; or (0,).
        importance: (N, K, 1) what multiplies each factor, or None.
        scale: (N, 1) one over the number of ids for a mean; zero for an absent id.
        bags: (N,) bag of the id.
    """

    rows: Tensor
    factors: Tensor
    importance_rows: Tensor
    importance: Tensor | None
    scale: Tensor
    bags: Tensor


def forward(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    first_rows: Tensor,
    num_rows: Tensor,
    divisors: Tensor | None,
    seeds: Tensor | None,
    importance: Tensor | None,
    importance_offsets: Tensor | None,
    weights: Tensor | None,
    product: bool,
    mean: bool,
) -> Tensor:
    """Return the pooled compositions (B, F, D); the arguments are those of the op."""
    at = _look_up(weight, values, offsets, first_rows, num_rows, divisors, seeds,
                  importance, importance_offsets, mean)  # fmt: skip
    scale = at.scale if weights is None else at.scale * weights.unsqueeze(1)
    pooled = bag_layout.sum_bags(_compose(at, product) * scale, offsets)
    return bag_layout.to_examples(pooled.to(weight.dtype), first_rows.shape[0])


def backward(
    grad: Tensor,
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    first_rows: Tensor,
    num_rows: Tensor,
    divisors: Tensor | None,
    seeds: Tensor | None,
    importance: Tensor | None,
    importance_offsets: Tensor | None,
    weights: Tensor | None,
    product: bool,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the op `composed_bag_backward` returns."""
    at = _look_up(weight, values, offsets, first_rows, num_rows, divisors, seeds,
                  importance, importance_offsets, mean)  # fmt: skip
    grad_id = bag_layout.to_bags(grad).to(at.scale.dtype)[at.bags] * at.scale
    grad_weights = at.scale.new_empty(0)
    if weights is not None:
        grad_weights = (grad_id * _compose(at, product)).sum(1)
        grad_id = grad_id * weights.to(at.scale.dtype).unsqueeze(1)
    num_factors = first_rows.shape[1]
    grad_rows = grad_id.unsqueeze(1).repeat(1, num_factors, 1)
    grad_importance = at.scale.new_empty(0, num_factors)
    if product:
        for j in range(num_factors):
            others = [i for i in range(num_factors) if i != j]
            grad_rows[:, j] *= at.factors[:, others].prod(1)
    if at.importance is not None:
        grad_importance = (grad_rows * at.factors).sum(2)
        grad_rows = grad_rows * at.importance
    return grad_rows, at.rows, grad_importance, at.importance_rows, grad_weights


def rows_of(
    values: Tensor,
    features: Tensor,
    first_rows: Tensor,
    num_rows: Tensor,
    divisors: Tensor | None,
    seeds: Tensor | None,
) -> Tensor:
    """Return the row (N, K) of each factor of each id (N,) of feature (N,), absent ids included.

    A digit: (id // divisor) % num_rows; else the hash of the id.
    """
    ids, counts = values.long().unsqueeze(1), num_rows[features]
    if divisors is not None:
        found = torch.div(ids.clamp_min(0), divisors[features], rounding_mode="floor") % counts
    else:
        assert seeds is not None
        found = hash_rows(ids, seeds[features], counts)
    return first_rows[features] + found


def _compose(at: _Lookups, product: bool) -> Tensor:
    if product:
        return at.factors.prod(1)
    return (at.factors if at.importance is None else at.factors * at.importance).sum(1)


def _look_up(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    first_rows: Tensor,
    num_rows: Tensor,
    divisors: Tensor | None,
    seeds: Tensor | None,
    importance: Tensor | None,
    importance_offsets: Tensor | None,
    mean: bool,
) -> _Lookups:
    dtype, num_features = bag_layout.accumulator(weight.dtype), first_rows.shape[0]
    total_bags = bag_layout.num_bags(values, offsets)
    bags = bag_layout.bag_of_lookup(values, offsets)
    features = bag_layout.feature_of_lookup(bags, total_bags, num_features)
    present = torch.ones_like(values, dtype=torch.bool)
    if divisors is not None:
        present = (values >= 0) & (values < MAX_DIGIT_ID)
    importance_rows, of_factors = values.new_empty(0, dtype=torch.int64), None
    if importance is not None:
        assert importance_offsets is not None
        first, stop = importance_offsets[features], importance_offsets[features + 1]
        present = present & (values >= 0) & (values < stop - first)
        importance_rows = torch.where(present, values.long() + first, -1)
        of_factors = importance[importance_rows.clamp_min(0)].to(dtype).unsqueeze(2)
    rows = rows_of(values, features, first_rows, num_rows, divisors, seeds)
    rows = torch.where(present.unsqueeze(1), rows, -1)
    factors = weight[rows.clamp_min(0)].to(dtype) * present[:, None, None]
    scale = bag_layout.lookup_scale(present, bags, total_bags, dtype, mean=mean).unsqueeze(1)
    return _Lookups(rows, factors, importance_rows, of_factors, scale, bags)
