"""ROBE in plain torch, written to be read; also the path on a CPU.

Shapes: `N` ids, `F` features, `B` examples, `D` width, `Z` chunk size, `C` = ceil(D / Z) chunks,
`P` parameters.
"""

import torch
from torch import Tensor

from recemb.kernels import bag_layout
from recemb.kernels.hashing import fmix32, hash_rows

_MASK32 = 0xFFFFFFFF


def forward(
    params: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    seeds: Tensor,
    sign_seeds: Tensor | None,
    weights: Tensor | None,
    width: int,
    chunk_size: int,
    aligned: bool,
    mean: bool,
) -> Tensor:
    """Return the pooled rows (B, F, D); the arguments are those of the op."""
    features, scale, _ = _pooling(params, values, offsets, weights, seeds.shape[0], mean)
    starts = starts_of(values, features, seeds, params.shape[0], chunk_size, aligned)
    rows = params[elements_of(starts, width, chunk_size, params.shape[0])].to(scale.dtype)
    if sign_seeds is not None:
        rows = rows * signs_of(values, sign_seeds[features], width)
    pooled = bag_layout.sum_bags(rows * scale, offsets)
    return bag_layout.to_examples(pooled.to(params.dtype), seeds.shape[0])


def backward(
    grad: Tensor,
    params: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    seeds: Tensor,
    sign_seeds: Tensor | None,
    weights: Tensor | None,
    width: int,
    chunk_size: int,
    aligned: bool,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of elements (N, D), chunk starts (N, C), and of weights (N,) or (0,)."""
    features, scale, bags = _pooling(params, values, offsets, None, seeds.shape[0], mean)
    starts = starts_of(values, features, seeds, params.shape[0], chunk_size, aligned)
    grad_elements = bag_layout.to_bags(grad).to(scale.dtype)[bags] * scale
    if sign_seeds is not None:
        grad_elements = grad_elements * signs_of(values, sign_seeds[features], width)
    grad_weights = scale.new_empty(0)
    if weights is not None:
        rows = params[elements_of(starts, width, chunk_size, params.shape[0])].to(scale.dtype)
        grad_weights = (grad_elements * rows).sum(1)
        grad_elements = grad_elements * weights.to(scale.dtype).unsqueeze(1)
    return grad_elements, starts, grad_weights


def starts_of(
    values: Tensor,
    features: Tensor,
    seeds: Tensor,
    num_params: int,
    chunk_size: int,
    aligned: bool,
) -> Tensor:
    """Return where each chunk (N, C) of each id (N,) of feature (N,) starts, int64."""
    if aligned:
        slots = hash_rows(values.unsqueeze(1), seeds[features], num_params // chunk_size)
        return slots * chunk_size
    return hash_rows(values.unsqueeze(1), seeds[features], num_params)


def elements_of(starts: Tensor, width: int, chunk_size: int, num_params: int) -> Tensor:
    """Return which parameter each element (N, D) is, int64, from the chunks' starts (N, C)."""
    column = torch.arange(width, device=starts.device)
    return (starts[:, column // chunk_size] + column % chunk_size) % num_params


def signs_of(values: Tensor, sign_seeds: Tensor, width: int) -> Tensor:
    """Return the sign (N, D) of each element of each id (N,), 1 or -1, from one seed for each.

    The top bit of fmix32(h ^ d), h being the id's 32-bit hash before its reduction to rows.
    """
    ids = values.long()
    h = fmix32((ids & _MASK32) ^ sign_seeds)
    h = fmix32(h ^ ((ids >> 32) & _MASK32)).unsqueeze(1)
    return 1 - 2 * (fmix32(h ^ torch.arange(width, device=values.device)) >> 31)


def _pooling(
    params: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    num_features: int,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the feature (N,), the factor (N, 1) and the bag (N,) of each id."""
    total_bags = bag_layout.num_bags(values, offsets)
    bags = bag_layout.bag_of_lookup(values, offsets)
    features = bag_layout.feature_of_lookup(bags, total_bags, num_features)
    scale = bag_layout.lookup_scale(
        torch.ones_like(values, dtype=torch.bool),
        bags,
        total_bags,
        bag_layout.accumulator(params.dtype),
        mean=mean,
    )
    if weights is not None:
        scale = scale * weights
    return features, scale.unsqueeze(1), bags
