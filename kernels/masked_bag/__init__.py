"""Bags whose rows are pruned by a threshold on their norm and cut to a prefix (OptEmbed's masks).

    out[b, f] = pool over i in bag of  a_i * [norm(w_i) > t_f] * (w_i[0..k_i), 0, ..)

Shapes: `N` ids, `F` features, `B` examples, `D` width, `R` rows.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from recemb.kernels import bag_layout
from recemb.kernels.bag_update import dense_gradient
from recemb.kernels.masked_bag import reference
from recemb.kernels.masked_bag.reference import surrogate

__all__ = ["MaskedBagGradients", "masked_bag", "masked_bag_backward", "surrogate"]


class MaskedBagGradients(NamedTuple):
    """The gradients of one lookup, in float32 (float64 for float64 weights).

    Attributes:
        rows: (N, D) of each row looked up, not yet summed over ids that repeat; zero for an id
            outside the table.
        thresholds: (F,), or None without thresholds.
        weights: (N,), or None without weights.
    """

    rows: Tensor
    thresholds: Tensor | None
    weights: Tensor | None


def masked_bag(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None = None,
    *,
    num_features: int = 1,
    thresholds: Tensor | None = None,
    lookup_widths: Tensor | None = None,
    feature_widths: Tensor | None = None,
    weights: Tensor | None = None,
    pooling: str = "sum",
    norm: int = 1,
    norm_of_prefix: bool = False,
) -> Tensor:
    """Return pooled rows (B, F, D) after the row mask and the prefix mask, in the weights' type.

    OptEmbed's modes: "feature" is thresholds alone, "embed" widths alone, "all" both, "all2" both
    with `norm_of_prefix`. A pruned row adds zeros and still counts in a mean.

    DETERMINISM: bit-equal repeats, forward and backward; no atomics. The kernel's row norms and the
    reference's may differ in the last bit, so a row that lies on its threshold to within rounding
    may pass in one and not in the other.
    ACCUMULATION: float32, in the order of the ids; norms too.
    SAVED FOR BACKWARD: the arguments, nothing else; norms are computed again from the rows, which
    the backward pass reads anyway.
    GRADIENTS: of `weight` (dense: use `masked_bag_backward` to train a big table), `thresholds` and
    `weights`. The step's derivative is `surrogate`.

    Args:
        weight: (R, D) float32, float16 or bfloat16; float64 on a CPU. All tables, in turn.
        values: (N,) int32 or int64, row numbers in `weight`, feature by feature. Those outside
            [0, R) are absent: they add nothing and do not count in a mean.
        offsets: (F * B + 1,) int32 or int64, from 0 to N; None if every bag has one id.
        num_features: F.
        thresholds: (F,) floating; a row is kept if its norm is above. None keeps all.
        lookup_widths: (N,) int32 or int64, leading columns kept, by id.
        feature_widths: (F,) int32 or int64, leading columns kept, by feature.
        weights: (N,) floating, what multiplies each row.
        pooling: "sum" or "mean"; the mean divides by the number of present ids, weighted or not.
        norm: 1 or 2.
        norm_of_prefix: take the norm after the prefix mask, times D / k (the released code's mode
            "all2", whose 64 is its D).

    Raises:
        ValueError: if shapes, types or options do not fit together.

    Source:
        OptEmbed (Lyu et al., CIKM 2022, arXiv 2208.04482), sections on redundant embedding pruning
        and the supernet; surrogate from Dynamic Sparse Training (Liu et al., ICLR 2020).

    Example:
        >>> weight = torch.tensor([[0.1, 0.1], [1.0, 2.0]])
        >>> masked_bag(weight, torch.tensor([0, 1]), thresholds=torch.tensor([0.5]))
        tensor([[[0., 0.]],
        <BLANKLINE>
                [[1., 2.]]])
    """
    _check(weight, values, offsets, thresholds, lookup_widths, feature_widths, weights,
           num_features, pooling, norm, norm_of_prefix)  # fmt: skip
    out: Tensor = torch.ops.recemb.masked_bag(
        weight, values, offsets, thresholds, lookup_widths, feature_widths, weights,
        num_features, pooling == "mean", norm, norm_of_prefix,
    )  # fmt: skip
    return out


def masked_bag_backward(
    grad: Tensor,
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None = None,
    *,
    num_features: int = 1,
    thresholds: Tensor | None = None,
    lookup_widths: Tensor | None = None,
    feature_widths: Tensor | None = None,
    weights: Tensor | None = None,
    pooling: str = "sum",
    norm: int = 1,
    norm_of_prefix: bool = False,
) -> MaskedBagGradients:
    """Return the gradients of one lookup for a fused row-sparse optimizer; the weights stay as is.

    Determinism and accumulation are those of `masked_bag`.

    Args:
        grad: (B, F, D) floating, the gradient of the result.
        weight: as given to `masked_bag`, as are the others, and not yet updated.
        values: (N,).
        offsets: (F * B + 1,) or None.
        num_features: F.
        thresholds: (F,) or None.
        lookup_widths: (N,) or None.
        feature_widths: (F,) or None.
        weights: (N,) or None.
        pooling: "sum" or "mean".
        norm: 1 or 2.
        norm_of_prefix: as given to `masked_bag`.

    Raises:
        ValueError: as `masked_bag`, and if `grad` is not (B, F, D).
    """
    _check(weight, values, offsets, thresholds, lookup_widths, feature_widths, weights,
           num_features, pooling, norm, norm_of_prefix)  # fmt: skip
    examples = bag_layout.num_bags(values, offsets) // num_features
    if grad.shape != (examples, num_features, weight.shape[1]):
        raise ValueError(
            f"masked_bag_backward: grad must be (B, F, D) = "
            f"{(examples, num_features, weight.shape[1])}, got {tuple(grad.shape)}"
        )
    rows, of_thresholds, of_weights = torch.ops.recemb.masked_bag_backward(
        grad, weight, values, offsets, thresholds, lookup_widths, feature_widths, weights,
        num_features, pooling == "mean", norm, norm_of_prefix,
    )  # fmt: skip
    return MaskedBagGradients(
        rows,
        None if thresholds is None else of_thresholds,
        None if weights is None else of_weights,
    )


def _check(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    thresholds: Tensor | None,
    lookup_widths: Tensor | None,
    feature_widths: Tensor | None,
    weights: Tensor | None,
    num_features: int,
    pooling: str,
    norm: int,
    norm_of_prefix: bool,
) -> None:
    owner = "masked_bag"
    bag_layout.check_bags(owner, values, offsets, weights, num_features, pooling)
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"{owner}: weight must be (R, D) floating, got {tuple(weight.shape)} {weight.dtype}"
        )
    if thresholds is None and lookup_widths is None and feature_widths is None:
        raise ValueError(
            f"{owner}: nothing masks; give thresholds or widths, or use an ordinary lookup"
        )
    if lookup_widths is not None and feature_widths is not None:
        raise ValueError(
            f"{owner}: widths are given by id and by feature; give lookup_widths or feature_widths"
        )
    for name, given in (("thresholds", thresholds), ("feature_widths", feature_widths)):
        if given is not None and given.shape != (num_features,):
            raise ValueError(
                f"{owner}: {name} must have one entry per feature, ({num_features},), "
                f"got {tuple(given.shape)}"
            )
    if lookup_widths is not None and lookup_widths.shape != values.shape:
        raise ValueError(
            f"{owner}: lookup_widths must have one entry per id, {tuple(values.shape)}, "
            f"got {tuple(lookup_widths.shape)}"
        )
    if norm not in (1, 2):
        raise ValueError(f"{owner}: norm must be 1 or 2, got {norm}")
    has_widths = lookup_widths is not None or feature_widths is not None
    if norm_of_prefix and (thresholds is None or not has_widths):
        raise ValueError(f"{owner}: norm_of_prefix needs both thresholds and widths")


_ARGUMENTS = (
    "Tensor weight, Tensor values, Tensor? offsets, Tensor? thresholds, Tensor? lookup_widths, "
    "Tensor? feature_widths, Tensor? weights, int num_features, bool mean, int norm, "
    "bool norm_of_prefix"
)
torch.library.define("recemb::masked_bag", f"({_ARGUMENTS}) -> Tensor")
torch.library.define(
    "recemb::masked_bag_backward", f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
)
torch.library.impl("recemb::masked_bag", "cpu", reference.forward)
torch.library.impl("recemb::masked_bag_backward", "cpu", reference.backward)


@torch.library.impl("recemb::masked_bag", "cuda")
def _forward_cuda(*arguments: Any) -> Tensor:
    from recemb.kernels.masked_bag import kernel

    return kernel.masked_bag_forward(*arguments)


@torch.library.impl("recemb::masked_bag_backward", "cuda")
def _backward_cuda(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from recemb.kernels.masked_bag import kernel

    return kernel.masked_bag_backward(*arguments)


def _forward_fake(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    thresholds: Tensor | None,
    lookup_widths: Tensor | None,
    feature_widths: Tensor | None,
    weights: Tensor | None,
    num_features: int,
    *options: Any,
) -> Tensor:
    examples = bag_layout.num_bags(values, offsets) // num_features
    return weight.new_empty(examples, num_features, weight.shape[1])


def _backward_fake(
    grad: Tensor,
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    thresholds: Tensor | None,
    lookup_widths: Tensor | None,
    feature_widths: Tensor | None,
    weights: Tensor | None,
    num_features: int,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, num_ids = bag_layout.accumulator(weight.dtype), values.shape[0]
    return (
        weight.new_empty(num_ids, weight.shape[1], dtype=dtype),
        weight.new_empty(0 if thresholds is None else num_features, dtype=dtype),
        weight.new_empty(0 if weights is None else num_ids, dtype=dtype),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.options = inputs[7:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    weight, values, _, thresholds, _, _, weights = saved
    rows, of_thresholds, of_weights = torch.ops.recemb.masked_bag_backward(
        grad, *saved, *ctx.options
    )
    gradients: list[Tensor | None] = [None] * (len(saved) + len(ctx.options))
    if ctx.needs_input_grad[0]:
        summed = dense_gradient(rows, values, None, None, weight.shape[0])
        gradients[0] = summed.to(weight.dtype)
    if ctx.needs_input_grad[3]:
        gradients[3] = of_thresholds.to(thresholds.dtype)
    if ctx.needs_input_grad[6]:
        gradients[6] = of_weights.to(weights.dtype)
    return tuple(gradients)


torch.library.register_fake("recemb::masked_bag", _forward_fake)
torch.library.register_fake("recemb::masked_bag_backward", _backward_fake)
torch.library.register_autograd("recemb::masked_bag", _differentiate, setup_context=_save)
