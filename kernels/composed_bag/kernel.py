"""The composed bag in Triton: one program per block of bags, forward and backward.

Shapes: `N` ids, `F` features, `B` examples, `K` factors, `D` width, `R` rows; a program holds
BLOCK_B bags as a column (BLOCK_B, 1) and rows as (BLOCK_B, BLOCK_D). No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recemb.kernels import bag_layout, bag_tile
from recemb.kernels.bag_tile import bag_bounds, load_id
from recemb.kernels.hashing.kernel import hash_row


@triton.jit
def _is_present(x, is_id, num_importances, DIGITS: tl.constexpr, IMPORTANCE: tl.constexpr):
    """Return which ids (BLOCK_B, 1) have rows."""
    present = is_id
    if DIGITS:
        present = present & (x >= 0) & (x < 2147483648)
    if IMPORTANCE:
        present = present & (x >= 0) & (x < num_importances)
    return present


@triton.jit
def _factor_row(first_rows, num_rows, divisors, seeds, x, feature, inside, j: tl.constexpr,
                K: tl.constexpr, DIGITS: tl.constexpr):  # fmt: skip
    """Return the row (BLOCK_B, 1) int64 of factor j of each id; digits by 32-bit division."""
    at = feature * K + j
    first = tl.load(first_rows + at, mask=inside, other=0)
    count = tl.load(num_rows + at, mask=inside, other=1)
    if DIGITS:
        divisor = tl.load(divisors + at, mask=inside, other=1).to(tl.uint32)
        row = ((x.to(tl.uint32) // divisor) % count.to(tl.uint32)).to(tl.int64)
    else:
        row = hash_row(x, tl.load(seeds + at, mask=inside, other=0), count)
    return first + row


@triton.jit
def _load_row(weight, row, present, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return rows (BLOCK_B, BLOCK_D) float32, zero where absent."""
    d = tl.arange(0, BLOCK_D)[None, :]
    return tl.load(weight + row * D + d, mask=present & (d < D), other=0).to(tl.float32)


@triton.jit
def _product(weight, first_rows, num_rows, divisors, seeds, x, feature, inside, present,
             skipped: tl.constexpr, K: tl.constexpr, DIGITS: tl.constexpr, D: tl.constexpr,
             BLOCK_D: tl.constexpr):  # fmt: skip
    """Return the product (BLOCK_B, BLOCK_D) of the factors of each id, bar one; zero if absent."""
    product = tl.where(present, 1.0, tl.zeros([1, BLOCK_D], tl.float32))
    for j in tl.static_range(K):
        if j != skipped:
            row = _factor_row(first_rows, num_rows, divisors, seeds, x, feature, inside, j, K,
                              DIGITS)  # fmt: skip
            product *= _load_row(weight, row, present, D, BLOCK_D)
    return product


@triton.jit
def _importances_of(importance_offsets, feature, inside, IMPORTANCE: tl.constexpr):
    """Return the first row and the number of importances of each feature; zero without any."""
    if IMPORTANCE:
        first = tl.load(importance_offsets + feature, mask=inside, other=0)
        count = tl.load(importance_offsets + feature + 1, mask=inside, other=0) - first
    else:
        first = tl.zeros(feature.shape, tl.int64)
        count = first
    return first, count


@triton.jit
def _weight_of(weights, position, is_id, WEIGHTED: tl.constexpr):
    """Return what multiplies each id (BLOCK_B, 1), one without weights."""
    if WEIGHTED:
        a = tl.load(weights + position, mask=is_id, other=0).to(tl.float32)
    else:
        a = tl.full(is_id.shape, 1.0, tl.float32)
    return a


@triton.jit
def _count_present(values, start, length, longest, num_importances, DIGITS: tl.constexpr,
                   IMPORTANCE: tl.constexpr):  # fmt: skip
    """Return how many ids of each bag (BLOCK_B, 1) have rows, float32."""
    count = tl.zeros(length.shape, tl.float32)
    for at in range(0, longest):
        is_id = at < length
        x = load_id(values, start + at, is_id)
        count += _is_present(x, is_id, num_importances, DIGITS, IMPORTANCE).to(tl.float32)
    return count


@triton.jit
def _composed_bag_forward_kernel(
    weight, values, offsets, first_rows, num_rows, divisors, seeds,
    importance, importance_offsets, weights, out, num_bags, num_examples, num_features,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr, K: tl.constexpr,
    JAGGED: tl.constexpr, WEIGHTED: tl.constexpr, MEAN: tl.constexpr, DIGITS: tl.constexpr,
    IMPORTANCE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Write out[b, f] = sum or mean over the bag of a_i * compose_j(p_ij, weight[row_j(i)])."""
    bag = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    inside = bag < num_bags
    feature = bag // num_examples
    start, length = bag_bounds(offsets, bag.to(tl.int64), inside, JAGGED)
    first_importance, num_importances = _importances_of(importance_offsets, feature, inside,
                                                        IMPORTANCE)  # fmt: skip
    total = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    count = tl.zeros([BLOCK_B, 1], tl.float32)
    for at in range(0, tl.max(length)):
        is_id = at < length
        position = start + at
        x = load_id(values, position, is_id)
        present = _is_present(x, is_id, num_importances, DIGITS, IMPORTANCE)
        if PRODUCT:
            composed = _product(weight, first_rows, num_rows, divisors, seeds, x, feature, inside,
                                present, -1, K, DIGITS, D, BLOCK_D)  # fmt: skip
        else:
            composed = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
            for j in tl.static_range(K):
                row = _factor_row(first_rows, num_rows, divisors, seeds, x, feature, inside, j, K,
                                  DIGITS)  # fmt: skip
                w = _load_row(weight, row, present, D, BLOCK_D)
                if IMPORTANCE:
                    p = tl.load(importance + (first_importance + x) * K + j, mask=present, other=0)
                    w *= p.to(tl.float32)
                composed += w
        count += present.to(tl.float32)
        total += composed * tl.where(present, _weight_of(weights, position, is_id, WEIGHTED), 0.0)
    if MEAN:
        total = total / tl.maximum(count, 1.0)
    to = (bag % num_examples).to(tl.int64) * num_features + feature
    d = tl.arange(0, BLOCK_D)[None, :]
    tl.store(out + to * D + d, total, mask=inside & (d < D))


@triton.jit
def _composed_bag_backward_kernel(
    grad, weight, values, offsets, first_rows, num_rows, divisors, seeds,
    importance, importance_offsets, weights,
    grad_rows, rows, grad_importance, importance_rows, grad_weights,
    num_bags, num_examples, num_features,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr, K: tl.constexpr,
    JAGGED: tl.constexpr, WEIGHTED: tl.constexpr, MEAN: tl.constexpr, DIGITS: tl.constexpr,
    IMPORTANCE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Write the gradient and the number of every row read, of importances, and of the weights."""
    bag = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    inside = bag < num_bags
    feature = bag // num_examples
    start, length = bag_bounds(offsets, bag.to(tl.int64), inside, JAGGED)
    longest = tl.max(length)
    d = tl.arange(0, BLOCK_D)[None, :]
    first_importance, num_importances = _importances_of(importance_offsets, feature, inside,
                                                        IMPORTANCE)  # fmt: skip
    source = (bag % num_examples).to(tl.int64) * num_features + feature
    g_bag = tl.load(grad + source * D + d, mask=inside & (d < D), other=0).to(tl.float32)
    if MEAN:
        count = _count_present(values, start, length, longest, num_importances, DIGITS, IMPORTANCE)
        g_bag = g_bag / tl.maximum(count, 1.0)
    for at in range(0, longest):
        is_id = at < length
        position = start + at
        x = load_id(values, position, is_id)
        present = _is_present(x, is_id, num_importances, DIGITS, IMPORTANCE)
        g = tl.where(present, g_bag, 0.0)
        a = _weight_of(weights, position, is_id, WEIGHTED)
        if IMPORTANCE:
            tl.store(importance_rows + position, tl.where(present, first_importance + x, -1),
                     mask=is_id)  # fmt: skip
        d_weight = tl.zeros([BLOCK_B, 1], tl.float32)
        if WEIGHTED and PRODUCT:
            composed = _product(weight, first_rows, num_rows, divisors, seeds, x, feature, inside,
                                present, -1, K, DIGITS, D, BLOCK_D)  # fmt: skip
            d_weight = tl.sum(g * composed, axis=1, keep_dims=True)
        for j in tl.static_range(K):
            row = _factor_row(first_rows, num_rows, divisors, seeds, x, feature, inside, j, K,
                              DIGITS)  # fmt: skip
            tl.store(rows + position * K + j, tl.where(present, row, -1), mask=is_id)
            d_row = g * a
            if PRODUCT:
                d_row *= _product(weight, first_rows, num_rows, divisors, seeds, x, feature,
                                  inside, present, j, K, DIGITS, D, BLOCK_D)  # fmt: skip
            elif IMPORTANCE or WEIGHTED:
                product = tl.sum(g * _load_row(weight, row, present, D, BLOCK_D), axis=1,
                                 keep_dims=True)  # fmt: skip
                if IMPORTANCE:
                    p = tl.load(importance + (first_importance + x) * K + j, mask=present, other=0)
                    p = p.to(tl.float32)
                    tl.store(grad_importance + position * K + j, product * a, mask=is_id)
                    d_row *= p
                    product *= p
                d_weight += product
            tl.store(grad_rows + (position * K + j) * D + d, d_row, mask=is_id & (d < D))
        if WEIGHTED:
            tl.store(grad_weights + position, d_weight, mask=is_id)


def composed_bag_forward(
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
    block_bags: int | None = None,
) -> Tensor:
    """Return the pooled compositions (B, F, D); the arguments are those of the op.

    `block_bags` is BLOCK_B, for tests.
    """
    bag_tile.check_weight("composed_bag", weight)
    total_bags, num_features = bag_layout.num_bags(values, offsets), first_rows.shape[0]
    num_examples, width = total_bags // num_features, weight.shape[1]
    out = torch.empty(num_examples, num_features, width, dtype=weight.dtype, device=weight.device)
    if not out.numel():
        return out
    block = block_bags or bag_tile.bags_per_program(
        width,
        total_bags,
        elements=elements_per_program(
            weight.itemsize, backward=False, is_weighted=importance is not None
        ),
    )
    optional = (divisors, seeds, importance, importance_offsets, weights)
    _composed_bag_forward_kernel[(triton.cdiv(total_bags, block),)](
        weight, values.contiguous(), *_pointers((offsets, first_rows, num_rows), values),
        *_pointers(optional, values), out, total_bags, num_examples, num_features,
        **_constants(weight, first_rows, offsets, optional, product, mean, block),
    )  # fmt: skip
    return out


def composed_bag_backward(
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
    block_bags: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the op `composed_bag_backward` returns."""
    bag_tile.check_weight("composed_bag", weight)
    total_bags, (num_features, num_factors) = (
        bag_layout.num_bags(values, offsets),
        first_rows.shape,
    )
    (num_ids,), width = values.shape, weight.shape[1]
    num_important = 0 if importance is None else num_ids
    made = (
        weight.new_empty(num_ids, num_factors, width, dtype=torch.float32),
        values.new_empty(num_ids, num_factors, dtype=torch.int64),
        weight.new_empty(num_important, num_factors, dtype=torch.float32),
        values.new_empty(num_important, dtype=torch.int64),
        weight.new_empty(0 if weights is None else num_ids, dtype=torch.float32),
    )
    if total_bags:
        block = block_bags or bag_tile.bags_per_program(
            width,
            total_bags,
            elements=elements_per_program(
                weight.itemsize, backward=True, is_weighted=importance is not None
            ),
        )
        optional = (divisors, seeds, importance, importance_offsets, weights)
        _composed_bag_backward_kernel[(triton.cdiv(total_bags, block),)](
            grad.contiguous(), weight, values.contiguous(),
            *_pointers((offsets, first_rows, num_rows), values), *_pointers(optional, values),
            *made, total_bags, total_bags // num_features, num_features,
            **_constants(weight, first_rows, offsets, optional, product, mean, block),
        )  # fmt: skip
    return made


def elements_per_program(itemsize: int, *, backward: bool, is_weighted: bool) -> int:
    """Return BLOCK_B * BLOCK_D: what four warps hold of all factors without spills."""
    if backward and is_weighted:
        return 512
    return 1024 if backward or is_weighted or itemsize > 2 else 2048


def _pointers(optional: tuple[Tensor | None, ...], stand_in: Tensor) -> list[Tensor]:
    """Return contiguous tensors; `stand_in` for those that the kernel will not read."""
    return [stand_in if tensor is None else tensor.contiguous() for tensor in optional]


def _constants(
    weight: Tensor,
    first_rows: Tensor,
    offsets: Tensor | None,
    optional: tuple[Tensor | None, ...],
    product: bool,
    mean: bool,
    block: int,
) -> dict[str, object]:
    divisors, _, importance, _, weights = optional
    return {
        "D": weight.shape[1],
        "BLOCK_D": triton.next_power_of_2(weight.shape[1]),
        "BLOCK_B": block,
        "K": first_rows.shape[1],
        "JAGGED": offsets is not None,
        "WEIGHTED": weights is not None,
        "MEAN": mean,
        "DIGITS": divisors is not None,
        "IMPORTANCE": importance is not None,
        "PRODUCT": product,
        **bag_tile.launch_options(),
    }
