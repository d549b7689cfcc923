"""Bags whose rows are composed of several shared ones: quotient-remainder, hash embeddings.

    out[b, f] = pool over ids x in bag of  a_x * compose over j of  weight[first_j + address_j(x)]

`compose` is a product, a sum, or a sum weighted by learned importances; it comes BEFORE pooling,
for the product of pooled sums is not the pooled sum of products.

Shapes: `N` ids, `F` features, `B` examples, `K` factors, `D` width, `R` rows, `P` importances.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from recemb.kernels import bag_layout
from recemb.kernels.bag_update import dense_gradient
from recemb.kernels.composed_bag import reference

__all__ = ["ComposedBagGradients", "composed_bag", "composed_bag_backward"]

COMBINES = ("product", "sum", "weighted")


class ComposedBagGradients(NamedTuple):
    """The gradients of one lookup, in float32 (float64 for float64 weights).

    Nothing is summed over rows that repeat; what belongs to an absent id is zero, its row -1.

    Attributes:
        rows: (N, K, D), of the row of each factor of each id.
        row_numbers: (N, K) int64, those rows.
        importance: (N, K), or None unless combine is "weighted".
        importance_numbers: (N,) int64, the rows of `importance`, or None.
        weights: (N,), or None without weights.
    """

    rows: Tensor
    row_numbers: Tensor
    importance: Tensor | None
    importance_numbers: Tensor | None
    weights: Tensor | None


def composed_bag(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None = None,
    *,
    first_rows: Tensor,
    num_rows: Tensor,
    divisors: Tensor | None = None,
    seeds: Tensor | None = None,
    combine: str = "product",
    importance: Tensor | None = None,
    importance_offsets: Tensor | None = None,
    weights: Tensor | None = None,
    pooling: str = "sum",
) -> Tensor:
    """Return pooled compositions (B, F, D) of the weights' type.

    Factor j of id x of feature f is row `first_rows[f, j]` plus a digit of x,
    (x // divisors[f, j]) % num_rows[f, j], or plus its hash with seeds[f, j]. Quotient and
    remainder by m over n ids: divisors [m, 1], num_rows [ceil(n / m), m]. A mixed radix of more
    digits works the same way.

    DETERMINISM: bit-equal repeats, forward and backward; no atomics.
    ACCUMULATION: float32, factors in their order, ids in theirs.
    SAVED FOR BACKWARD: the arguments, nothing else; rows are read again.
    GRADIENTS: of `weight` (dense: use `composed_bag_backward` to train big tables), `importance`
    (likewise) and `weights`. The product's needs no division, so zeros are no trouble.

    Args:
        weight: (R, D) float32, float16 or bfloat16; float64 on a CPU. All factor tables, in turn.
        values: (N,) int32 or int64 ids, feature by feature. Digits exist for ids in [0, 2^31),
            importances for those below the feature's number; hashes for every id, negative ones
            too. Ids outside add nothing and do not count in a mean.
        offsets: (F * B + 1,) int32 or int64, from 0 to N; None if every bag has one id.
        first_rows: (F, K) int64. The addresses it leads to must lie in the table: not checked.
        num_rows: (F, K) int64, from 1 to 2^31 - 1.
        divisors: (F, K) int64, from 1 to 2^31 - 1, for digits.
        seeds: (F, K) int64, 32-bit, for hashes. Exactly one of `divisors` and `seeds` is given.
        combine: "product", "sum" or "weighted".
        importance: (P, K) floating, for "weighted": what multiplies each factor, by id.
        importance_offsets: (F + 1,) int64: those of feature f start at importance_offsets[f].
        weights: (N,) floating, what multiplies each composed row.
        pooling: "sum" or "mean"; the mean divides by the number of present ids, weighted or not.

    Raises:
        ValueError: if shapes, types or options do not fit together.

    Source:
        Product and sum: Shi et al., KDD 2020 (arXiv 1909.02107), section 3. Weighted: hash
        embeddings, Svenstrup et al., NIPS 2017 (arXiv 1709.03933), equation 1, without its
        optional concatenation of the importances.

    Example:
        >>> weight = torch.tensor([[1.0], [2.0], [3.0], [10.0], [100.0]])
        >>> digits = {"divisors": torch.tensor([[2, 1]]), "num_rows": torch.tensor([[3, 2]])}
        >>> composed_bag(weight, torch.tensor([0, 5]), first_rows=torch.tensor([[0, 3]]), **digits)
        tensor([[[ 10.]],
        <BLANKLINE>
                [[300.]]])
    """
    _check(weight, values, offsets, first_rows, num_rows, divisors, seeds, combine,
           importance, importance_offsets, weights, pooling)  # fmt: skip
    out: Tensor = torch.ops.recemb.composed_bag(
        weight, values, offsets, first_rows, num_rows, divisors, seeds,
        importance, importance_offsets, weights, combine == "product", pooling == "mean",
    )  # fmt: skip
    return out


def composed_bag_backward(
    grad: Tensor,
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None = None,
    *,
    first_rows: Tensor,
    num_rows: Tensor,
    divisors: Tensor | None = None,
    seeds: Tensor | None = None,
    combine: str = "product",
    importance: Tensor | None = None,
    importance_offsets: Tensor | None = None,
    weights: Tensor | None = None,
    pooling: str = "sum",
) -> ComposedBagGradients:
    """Return the gradients of one lookup for a fused row-sparse optimizer; the weights stay as is.

    Determinism and accumulation are those of `composed_bag`.

    Args:
        grad: (B, F, D) floating, the gradient of the result.
        weight: as given to `composed_bag`, as are the others, and not yet updated.
        values: (N,).
        offsets: (F * B + 1,) or None.
        first_rows: (F, K).
        num_rows: (F, K).
        divisors: (F, K) or None.
        seeds: (F, K) or None.
        combine: "product", "sum" or "weighted".
        importance: (P, K) or None.
        importance_offsets: (F + 1,) or None.
        weights: (N,) or None.
        pooling: "sum" or "mean".

    Raises:
        ValueError: as `composed_bag`, and if `grad` is not (B, F, D).
    """
    _check(weight, values, offsets, first_rows, num_rows, divisors, seeds, combine,
           importance, importance_offsets, weights, pooling)  # fmt: skip
    num_features = first_rows.shape[0]
    examples = bag_layout.num_bags(values, offsets) // num_features
    if grad.shape != (examples, num_features, weight.shape[1]):
        raise ValueError(
            f"composed_bag_backward: grad must be (B, F, D) = "
            f"{(examples, num_features, weight.shape[1])}, got {tuple(grad.shape)}"
        )
    rows, numbers, of_importance, importance_numbers, of_weights = (
        torch.ops.recemb.composed_bag_backward(
            grad, weight, values, offsets, first_rows, num_rows, divisors, seeds,
            importance, importance_offsets, weights, combine == "product", pooling == "mean",
        )
    )  # fmt: skip
    return ComposedBagGradients(
        rows,
        numbers,
        None if importance is None else of_importance,
        None if importance is None else importance_numbers,
        None if weights is None else of_weights,
    )


def _check(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    first_rows: Tensor,
    num_rows: Tensor,
    divisors: Tensor | None,
    seeds: Tensor | None,
    combine: str,
    importance: Tensor | None,
    importance_offsets: Tensor | None,
    weights: Tensor | None,
    pooling: str,
) -> None:
    owner = "composed_bag"
    if first_rows.dim() != 2 or not first_rows.shape[1]:
        raise ValueError(f"{owner}: first_rows must be (F, K), got {tuple(first_rows.shape)}")
    bag_layout.check_bags(owner, values, offsets, weights, first_rows.shape[0], pooling)
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"{owner}: weight must be (R, D) floating, got {tuple(weight.shape)} {weight.dtype}"
        )
    if (divisors is None) == (seeds is None):
        raise ValueError(
            f"{owner}: an address is a digit or a hash; give divisors or seeds, and not both"
        )
    _check_programs(owner, first_rows, num_rows, divisors, seeds)
    if combine not in COMBINES:
        raise ValueError(f"{owner}: combine must be one of {COMBINES}, got {combine!r}")
    if (combine == "weighted") != (importance is not None):
        raise ValueError(
            f"{owner}: importance goes with combine='weighted' and no other, got {combine!r}"
        )
    if importance is not None:
        _check_importance(owner, first_rows, importance, importance_offsets)


def _check_programs(
    owner: str, first_rows: Tensor, num_rows: Tensor, divisors: Tensor | None, seeds: Tensor | None
) -> None:
    named = {"first_rows": first_rows, "num_rows": num_rows, "divisors": divisors, "seeds": seeds}
    for name, given in named.items():
        if given is not None and (given.shape != first_rows.shape or given.dtype != torch.int64):
            raise ValueError(
                f"{owner}: {name} must be (F, K) = {tuple(first_rows.shape)} int64, "
                f"got {tuple(given.shape)} {given.dtype}"
            )


def _check_importance(
    owner: str, first_rows: Tensor, importance: Tensor, importance_offsets: Tensor | None
) -> None:
    num_features, num_factors = first_rows.shape
    if importance.dim() != 2 or importance.shape[1] != num_factors:
        raise ValueError(
            f"{owner}: importance must be (P, K) with K={num_factors}, "
            f"got {tuple(importance.shape)}"
        )
    if (
        importance_offsets is None
        or importance_offsets.shape != (num_features + 1,)
        or importance_offsets.dtype != torch.int64
    ):
        got = None if importance_offsets is None else tuple(importance_offsets.shape)
        raise ValueError(
            f"{owner}: importance_offsets must be (F + 1,) = ({num_features + 1},) int64, got {got}"
        )


_ARGUMENTS = (
    "Tensor weight, Tensor values, Tensor? offsets, Tensor first_rows, Tensor num_rows, "
    "Tensor? divisors, Tensor? seeds, Tensor? importance, Tensor? importance_offsets, "
    "Tensor? weights, bool product, bool mean"
)
torch.library.define("recemb::composed_bag", f"({_ARGUMENTS}) -> Tensor")
torch.library.define(
    "recemb::composed_bag_backward",
    f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("recemb::composed_bag", "cpu", reference.forward)
torch.library.impl("recemb::composed_bag_backward", "cpu", reference.backward)


@torch.library.impl("recemb::composed_bag", "cuda")
def _forward_cuda(*arguments: Any) -> Tensor:
    from recemb.kernels.composed_bag import kernel

    return kernel.composed_bag_forward(*arguments)


@torch.library.impl("recemb::composed_bag_backward", "cuda")
def _backward_cuda(*arguments: Any) -> tuple[Tensor, ...]:
    from recemb.kernels.composed_bag import kernel

    return kernel.composed_bag_backward(*arguments)


def _forward_fake(
    weight: Tensor, values: Tensor, offsets: Tensor | None, first_rows: Tensor, *others: Any
) -> Tensor:
    num_features = first_rows.shape[0]
    examples = bag_layout.num_bags(values, offsets) // num_features
    return weight.new_empty(examples, num_features, weight.shape[1])


def _backward_fake(
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
    *options: Any,
) -> tuple[Tensor, ...]:
    dtype, num_ids, num_factors = (
        bag_layout.accumulator(weight.dtype),
        values.shape[0],
        first_rows.shape[1],
    )
    num_important = 0 if importance is None else num_ids
    return (
        weight.new_empty(num_ids, num_factors, weight.shape[1], dtype=dtype),
        values.new_empty(num_ids, num_factors, dtype=torch.int64),
        weight.new_empty(num_important, num_factors, dtype=dtype),
        values.new_empty(num_important, dtype=torch.int64),
        weight.new_empty(0 if weights is None else num_ids, dtype=dtype),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:10])
    ctx.options = inputs[10:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    weight, importance, weights = saved[0], saved[7], saved[9]
    rows, numbers, of_importance, importance_numbers, of_weights = (
        torch.ops.recemb.composed_bag_backward(grad, *saved, *ctx.options)
    )
    gradients: list[Tensor | None] = [None] * (len(saved) + len(ctx.options))
    if ctx.needs_input_grad[0]:
        flat = rows.view(-1, weight.shape[1])
        summed = dense_gradient(flat, numbers.view(-1), None, None, weight.shape[0])
        gradients[0] = summed.to(weight.dtype)
    if ctx.needs_input_grad[7]:
        summed = dense_gradient(of_importance, importance_numbers, None, None, importance.shape[0])
        gradients[7] = summed.to(importance.dtype)
    if ctx.needs_input_grad[9]:
        gradients[9] = of_weights.to(weights.dtype)
    return tuple(gradients)


torch.library.register_fake("recemb::composed_bag", _forward_fake)
torch.library.register_fake("recemb::composed_bag_backward", _backward_fake)
torch.library.register_autograd("recemb::composed_bag", _differentiate, setup_context=_save)
