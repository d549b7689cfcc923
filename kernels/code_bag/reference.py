"""The code bag in plain torch, written to be read; also the path on a CPU.

Shapes: `N` ids, `F` features, `B` examples, `R` rows of codes, `P` parts, `K` centroids of a part,
`Z` width of a part, `D` = P * Z. Codebooks are (P, K, Z), or (F, P, K, Z) with one set per feature.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from recemb.kernels import bag_layout
from recemb.kernels.code_bag.packing import unpack_codes


class _Lookups(NamedTuple):
    """What forward and backward share.

    Attributes:
        present: (N,) bool, whether the id counts.
        books: (N, 1) int64, the set of codebooks of its feature; zero if all share one.
        codes: (N, P) int64, zero for an absent id.
        scale: (N,) one over the number of ids for a mean; zero for an absent id.
        bags: (N,) bag of the id.
    """

    present: Tensor
    books: Tensor
    codes: Tensor
    scale: Tensor
    bags: Tensor


def forward(
    codes: Tensor,
    codebooks: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    bits: int,
    num_features: int,
    mean: bool,
) -> Tensor:
    """Return the pooled vectors (B, F, D); the arguments are those of the op."""
    at = _look_up(codes, codebooks, values, offsets, bits, num_features, mean)
    scale = at.scale if weights is None else at.scale * torch.where(at.present, weights, 0)
    pooled = bag_layout.sum_bags(_decode(codebooks, at) * scale.unsqueeze(1), offsets)
    return bag_layout.to_examples(pooled.to(codebooks.dtype), num_features)


def backward(
    grad: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    bits: int,
    num_features: int,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the op `code_bag_backward` returns."""
    at = _look_up(codes, codebooks, values, offsets, bits, num_features, mean)
    num_parts, num_centroids, _ = codebooks.shape[-3:]
    parts = torch.arange(num_parts, device=values.device)
    entries = (at.books * num_parts + parts) * num_centroids + at.codes
    entries = torch.where(at.present.unsqueeze(1), entries, -1)
    num_bags = bag_layout.num_bags(values, offsets)
    rows = torch.arange(num_bags, device=values.device).view(-1, num_features)
    row_of_bag = rows.t().reshape(-1)  # Of the gradient (B * F, D), by feature-major bag.
    sources = row_of_bag[at.bags].unsqueeze(1) * num_parts + parts
    scales, grad_weights = at.scale.new_empty(0, num_parts), at.scale.new_empty(0)
    if weights is not None or mean:
        scale = at.scale if weights is None else at.scale * torch.where(at.present, weights, 0)
        scales = scale.unsqueeze(1).repeat(1, num_parts)
    if weights is not None:
        grad_bags = bag_layout.to_bags(grad).to(at.scale.dtype)
        grad_weights = (grad_bags[at.bags] * _decode(codebooks, at)).sum(1) * at.scale
    return entries.int(), sources, scales, grad_weights


def _decode(codebooks: Tensor, at: _Lookups) -> Tensor:
    """Return the vectors (N, D) in the accumulator's type, zero for absent ids.

    A code of K or more raises IndexError.
    """
    books = codebooks if codebooks.dim() == 4 else codebooks.unsqueeze(0)
    num_parts = books.shape[1]
    parts = torch.arange(num_parts, device=books.device)
    vectors = books[at.books, parts, at.codes].to(at.scale.dtype)
    # Of an absent id nothing may be seen, not even a NaN in centroid 0.
    vectors = torch.where(at.present.view(-1, 1, 1), vectors, 0)
    return vectors.view(vectors.shape[0], num_parts * books.shape[3])


def _look_up(
    codes: Tensor,
    codebooks: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    bits: int,
    num_features: int,
    mean: bool,
) -> _Lookups:
    dtype = bag_layout.accumulator(codebooks.dtype)
    total_bags = bag_layout.num_bags(values, offsets)
    bags = bag_layout.bag_of_lookup(values, offsets)
    features = bag_layout.feature_of_lookup(bags, total_bags, num_features)
    present = values >= 0
    num_parts = codebooks.shape[-3]
    if codes.shape[0]:
        rows = unpack_codes(codes[values.clamp_min(0)], num_parts, bits).long()
        rows = torch.where(present.unsqueeze(1), rows, 0)
    else:
        rows = torch.zeros(values.shape[0], num_parts, dtype=torch.int64, device=values.device)
    books = features if codebooks.dim() == 4 else torch.zeros_like(features)
    scale = bag_layout.lookup_scale(present, bags, total_bags, dtype, mean=mean)
    return _Lookups(present, books.unsqueeze(1), rows, scale, bags)
