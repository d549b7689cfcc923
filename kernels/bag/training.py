"""The pooled lookups that have a backward pass: `bag` updates rows in place, `bag_dense` does not.

Shapes: `S` slots, `F` features, `B` bags per feature, `N` ids, `M` lookups, `R` rows, `D` width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recemb.kernels import bag_update, bag_weight_gradient
from recemb.kernels.bag.slots import check_count, check_lookup, check_table

torch.library.define(
    "recemb::bag",
    "(Tensor weight, Tensor[] state, Tensor values, Tensor? offsets, Tensor? weights, "
    "Tensor slots, Tensor hyper, Tensor anchor, SymInt batch_size, str policy, "
    "ScalarType out_dtype, SymInt num_lookups, bool scaled, str optimizer, "
    "str weight_decay_mode, SymInt? rounding_seed) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "recemb::bag_dense",
    "(Tensor weight, Tensor values, Tensor? offsets, Tensor? weights, Tensor slots, "
    "SymInt batch_size, str policy, ScalarType out_dtype, SymInt num_lookups, bool scaled) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def bag(
    weight: Tensor,
    state: Sequence[Tensor],
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    hyper: Tensor,
    anchor: Tensor,
    *,
    batch_size: int,
    optimizer: str,
    weight_decay_mode: str = "none",
    rounding_seed: int | None = None,
    policy: str = "trust",
    num_lookups: int | None = None,
    scaled: bool = True,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the pooled rows (B, S * D); their backward pass updates `weight` and `state` in place.

    Backward, in this order: the gradient of `weights`, if they require one, from the rows as they
    were; the list of lookups; one exact update of each touched row (duplicates summed first). It
    happens once per call of backward, when `anchor` requires a gradient; `anchor` gets a zero.
    Two lookups of one buffer in one graph update one after the other, each as a step of its own.

    DETERMINISM: bit-equal repeats: sorted segments, no atomics.
    ACCUMULATION: float32 in both directions.
    SAVED FOR BACKWARD: the arguments, by reference; no copy, and nothing of size M. `hyper` is read
    during backward, so a learning rate written before it counts.

    Args:
        weight: (R, D) float32, float16 or bfloat16, contiguous; must not require a gradient.
        state: of the optimizer, as in `recemb.kernels.bag_update.update_rows`.
        values: as in `recemb.kernels.bag.bag_forward`.
        offsets: see there.
        weights: see there; may require a gradient.
        slots: see there.
        hyper: (8,) as in `update_rows`.
        anchor: 0-dim tensor that requires a gradient, so that autograd reaches this op; one that
            does not makes a lookup without update.
        batch_size: B.
        optimizer: as in `update_rows`.
        weight_decay_mode: as in `update_rows`.
        rounding_seed: as in `update_rows`.
        policy: as in `bag_forward`.
        num_lookups: M, at least the batch's lookups (`count_lookups`); None only without offsets.
        scaled: False promises sum slots only and no weights, which saves writing scales of 1.
        out_dtype: of the result.

    Raises:
        ValueError: if the arguments do not fit together.

    Source: the anchor is FBGEMM's placeholder_autograd_tensor (fbgemm_gpu, its PT2 interface).
    """
    if weight.requires_grad:
        raise ValueError(
            "bag: weight requires a gradient, but its rows are updated in place; use bag_dense, or "
            "make it a buffer"
        )
    if anchor.ndim != 0:
        raise ValueError(f"bag: anchor must be 0-dim, got shape {tuple(anchor.shape)}")
    count = _check("bag", weight, values, offsets, weights, slots, batch_size, policy, num_lookups)
    _check_scaled("bag", weights, scaled)
    out: Tensor = torch.ops.recemb.bag(
        weight,
        list(state),
        values,
        offsets,
        weights,
        slots,
        hyper,
        anchor,
        batch_size,
        policy,
        out_dtype,
        count,
        scaled,
        optimizer,
        weight_decay_mode,
        rounding_seed,
    )
    return out


def bag_dense(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    *,
    batch_size: int,
    policy: str = "trust",
    num_lookups: int | None = None,
    scaled: bool = True,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the pooled rows (B, S * D), differentiable in `weight` and `weights`.

    The gradient of `weight` is a dense (R, D) tensor of its dtype, for ordinary optimizers and
    small tables: it costs memory and time in proportion to R.

    DETERMINISM: bit-equal repeats: sorted segments, no atomics.
    ACCUMULATION: float32 in both directions (float64 on a CPU if `weight` is float64).
    SAVED FOR BACKWARD: the arguments; nothing of size M.

    Args:
        weight: (R, D) as in `recemb.kernels.bag.bag_forward`; may require a gradient.
        values: see there.
        offsets: see there.
        weights: see there; may require a gradient.
        slots: see there.
        batch_size: see there.
        policy: see there.
        num_lookups: M, at least the batch's lookups (`count_lookups`); None only without offsets.
        scaled: False promises sum slots only and no weights, which saves writing scales of 1.
        out_dtype: of the result.

    Raises:
        ValueError: if the arguments do not fit together.
    """
    owner = "bag_dense"
    count = _check(owner, weight, values, offsets, weights, slots, batch_size, policy, num_lookups)
    _check_scaled(owner, weights, scaled)
    out: Tensor = torch.ops.recemb.bag_dense(
        weight, values, offsets, weights, slots, batch_size, policy, out_dtype, count, scaled
    )
    return out


def _check(
    owner: str,
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    batch_size: int,
    policy: str,
    num_lookups: int | None,
) -> int:
    check_lookup(owner, values, offsets, weights, slots, batch_size, policy)
    check_table(owner, weight, values)
    return check_count(owner, offsets, slots, batch_size, num_lookups)


def _check_scaled(owner: str, weights: Tensor | None, scaled: bool) -> None:
    if weights is not None and not scaled:
        raise ValueError(f"{owner}: weights need scales; set scaled=True or weights=None")


def _bag_impl(
    weight: Tensor,
    state: list[Tensor],
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    hyper: Tensor,
    anchor: Tensor,
    batch_size: int,
    policy: str,
    out_dtype: torch.dtype,
    *rest: object,
) -> Tensor:
    return _dense_impl(weight, values, offsets, weights, slots, batch_size, policy, out_dtype)


def _dense_impl(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    batch_size: int,
    policy: str,
    out_dtype: torch.dtype,
    *rest: object,
) -> Tensor:
    out: Tensor = torch.ops.recemb.bag_forward(
        weight, values, offsets, weights, slots, batch_size, policy, out_dtype, False
    )
    return out


def _save_bag(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    (weight, state, values, offsets, weights, slots, hyper, anchor, *rest) = inputs
    # Attributes, not save_for_backward: that would refuse tensors which another lookup's backward
    # has updated in place since, which is what is meant to happen here.
    ctx.table = (weight, state, hyper)
    ctx.save_for_backward(values, offsets, weights, slots, anchor)
    (ctx.batch_size, ctx.policy, _, ctx.num_lookups, ctx.scaled, *ctx.update) = rest


def _bag_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weight, state, hyper = ctx.table
    values, offsets, weights, slots, anchor = ctx.saved_tensors
    optimizer, weight_decay_mode, rounding_seed = ctx.update
    grad = grad.contiguous()
    of_weights = None
    if ctx.needs_input_grad[4]:
        of_weights = bag_weight_gradient.bag_weight_gradient(
            weight, values, offsets, slots, grad, batch_size=ctx.batch_size, policy=ctx.policy
        ).to(weights.dtype)
    if ctx.needs_input_grad[7]:
        rows, sources, scales = _list_lookups(ctx, weight, values, offsets, weights, slots)
        bag_update.update_rows(
            weight,
            state,
            grad.view(-1, weight.shape[1]),
            rows,
            sources,
            scales,
            hyper,
            optimizer=optimizer,
            weight_decay_mode=weight_decay_mode,
            rounding_seed=rounding_seed,
        )
    of_anchor = torch.zeros_like(anchor) if ctx.needs_input_grad[7] else None
    return (None, [None] * len(state), None, None, of_weights, None, None, of_anchor, *[None] * 8)


def _save_dense(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    (weight, values, offsets, weights, slots, *rest) = inputs
    ctx.save_for_backward(weight, values, offsets, weights, slots)
    (ctx.batch_size, ctx.policy, _, ctx.num_lookups, ctx.scaled) = rest


def _dense_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weight, values, offsets, weights, slots = ctx.saved_tensors
    grad = grad.contiguous()
    of_weight = of_weights = None
    if ctx.needs_input_grad[3]:
        of_weights = bag_weight_gradient.bag_weight_gradient(
            weight, values, offsets, slots, grad, batch_size=ctx.batch_size, policy=ctx.policy
        ).to(weights.dtype)
    if ctx.needs_input_grad[0]:
        rows, sources, scales = _list_lookups(ctx, weight, values, offsets, weights, slots)
        of_weight = bag_update.dense_gradient(
            grad.view(-1, weight.shape[1]), rows, sources, scales, weight.shape[0]
        ).to(weight.dtype)
    return (of_weight, None, None, of_weights, *[None] * 6)


def _list_lookups(
    ctx: Any,
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    rows, sources, scales = torch.ops.recemb.bag_rows(
        values,
        offsets,
        weights,
        slots,
        ctx.batch_size,
        ctx.policy,
        weight.shape[0],
        ctx.num_lookups,
        wide if ctx.scaled else None,
    )
    return rows, sources, scales if ctx.scaled else None


def _bag_fake(weight: Tensor, *rest: Any) -> Tensor:
    slots, batch_size, out_dtype = rest[4], rest[7], rest[9]
    return weight.new_empty((batch_size, slots.shape[1] * weight.shape[1]), dtype=out_dtype)


def _dense_fake(weight: Tensor, *rest: Any) -> Tensor:
    slots, batch_size, out_dtype = rest[3], rest[4], rest[6]
    return weight.new_empty((batch_size, slots.shape[1] * weight.shape[1]), dtype=out_dtype)


torch.library.impl("recemb::bag", ("cpu", "cuda"), _bag_impl)
torch.library.impl("recemb::bag_dense", ("cpu", "cuda"), _dense_impl)
torch.library.register_fake("recemb::bag", _bag_fake)
torch.library.register_fake("recemb::bag_dense", _dense_fake)
torch.library.register_autograd("recemb::bag", _bag_backward, setup_context=_save_bag)
torch.library.register_autograd("recemb::bag_dense", _dense_backward, setup_context=_save_dense)
