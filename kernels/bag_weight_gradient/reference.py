"""The gradient of a pooled lookup's per-sample weights in plain torch.

Shapes: `S` slots, `F` features, `B` bags per feature, `N` ids, `R` rows, `D` width.
"""

import torch
from torch import Tensor

from recemb.kernels.bag.reference import find_lookups, scales_of

_CHUNK_LOOKUPS = 1 << 14
"""Lookups whose rows are read at a time, so that they stay in the cache."""


def bag_weight_gradient(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    slots: Tensor,
    grad: Tensor,
    *,
    batch_size: int,
    policy: str = "trust",
) -> Tensor:
    """Return d loss / d weights (N,), in float64 if `weight` is float64, else in float32."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    found = find_lookups(values, offsets, slots, batch_size=batch_size, policy=policy)
    num_slots, width = slots.shape[1], weight.shape[1]
    of_bag = grad.reshape(batch_size, num_slots, width).transpose(0, 1).reshape(-1, width)
    bags = torch.arange(found.lengths.numel(), device=values.device).view_as(found.lengths)
    bags = found.of_bags(bags)
    products = torch.empty(bags.shape[0], dtype=dtype, device=values.device)
    for first in range(0, bags.shape[0], _CHUNK_LOOKUPS):
        part = slice(first, first + _CHUNK_LOOKUPS)
        rows = weight.index_select(0, found.rows[part].clamp(min=0)).to(dtype)
        torch.sum(rows * of_bag[bags[part]].to(dtype), 1, out=products[part])
    products *= scales_of(found, None, slots, dtype)
    products = products.masked_fill_(found.rows < 0, 0)
    result = torch.zeros(values.shape[0], dtype=dtype, device=values.device)
    first = 0
    for start, end in found.spans:
        result[start:end] += products[first : first + end - start]
        first += end - start
    return result
