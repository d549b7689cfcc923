"""The pooled lookup without gradients, and the list of its lookups.

Shapes: `S` slots, `F` features, `B` bags per feature, `N` ids, `M` lookups, `R` rows, `D` width.
"""

import torch
from torch import Tensor

from recemb.kernels.bag import reference
from recemb.kernels.bag.slots import (
    INT32_SENTINEL,
    check_count,
    check_lookup,
    check_table,
)

torch.library.define(
    "recemb::bag_forward",
    "(Tensor weight, Tensor values, Tensor? offsets, Tensor? weights, Tensor slots, "
    "SymInt batch_size, str policy, ScalarType out_dtype, bool accumulate_float64) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "recemb::bag_rows",
    "(Tensor values, Tensor? offsets, Tensor? weights, Tensor slots, SymInt batch_size, "
    "str policy, SymInt sentinel, SymInt num_lookups, ScalarType? scale_dtype) "
    "-> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def bag_forward(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    *,
    batch_size: int,
    policy: str = "trust",
    out_dtype: torch.dtype = torch.float32,
    accumulate_float64: bool = False,
) -> Tensor:
    """Return the pooled rows (B, S * D) of every slot's bags; without gradients.

    An empty bag is exactly zero. Rows are added in the order of the ids.

    DETERMINISM: bit-equal repeats, whatever the launch's blocks.
    ACCUMULATION: float32, each row widened before it is added; float64 if asked to.
    SAVED FOR BACKWARD: nothing; `bag` and `bag_dense` have gradients.

    Args:
        weight: (R, D) float32, float16 or bfloat16, contiguous; on a CPU also float64.
        values: (N,) int64 or int32, feature after feature.
        offsets: (F * B + 1,) int64 or int32, from 0 to N, or None for exactly one id per bag.
        weights: (N,) floats that the ids' rows are multiplied by, or None.
        slots: (5, S) int64, from `pack_slots`.
        batch_size: B.
        policy: what becomes of an id outside [0, num_rows) in a slot that does not hash. "trust":
            there is none, which is not checked; "ignore": it contributes nothing and does not
            count in a mean; "clamp": it becomes 0, as in FBGEMM.
        out_dtype: of the result.
        accumulate_float64: for bags of thousands of ids.

    Raises:
        ValueError: if the arguments do not fit together, or `weight` or `weights` want a gradient.

    Source: FBGEMM's table-batched embedding (Khudia et al., 2021) for the layout of ids; Coleman et
    al., "Unified Embedding", NeurIPS 2023, for several hashed slots per feature.
    """
    check_lookup("bag_forward", values, offsets, weights, slots, batch_size, policy)
    check_table("bag_forward", weight, values)
    wanting = weight.requires_grad or (weights is not None and weights.requires_grad)
    if wanting and torch.is_grad_enabled():
        raise ValueError(
            "bag_forward: gives no gradients, but weight or weights require one; use bag_dense, or "
            "bag with rows that are updated in place"
        )
    out: Tensor = torch.ops.recemb.bag_forward(
        weight, values, offsets, weights, slots, batch_size, policy, out_dtype, accumulate_float64
    )
    return out


def bag_rows(
    values: Tensor,
    offsets: Tensor | None,
    slots: Tensor,
    *,
    batch_size: int,
    policy: str,
    sentinel: int,
    num_lookups: int | None = None,
    weights: Tensor | None = None,
    scale_dtype: torch.dtype | None = torch.float32,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the row, the gradient row and the scale of every lookup, slot after slot.

    What the update of the rows starts from: lookup m adds `scales[m] * grad[sources[m]]` to the
    gradient of row `rows[m]`, `grad` being seen as (B * S, D).

    DETERMINISM: bit-equal repeats. ACCUMULATION: none. SAVED FOR BACKWARD: nothing.

    Args:
        values: as in `bag_forward`, and so are offsets, slots, batch_size, policy and weights.
        offsets: see there.
        slots: see there.
        batch_size: see there.
        policy: see there.
        sentinel: the row of ignored ids and of what lies past the batch's lookups; at least R.
        num_lookups: M, at least the batch's lookups (`count_lookups`); None only without offsets.
        weights: see there.
        scale_dtype: of the scales; None promises sum slots only and no weights, so that all scales
            are 1 and none are written. On a GPU float32.

    Returns:
        rows (M,), int32 if `sentinel` < 2^31 - 1, else int64; sources (M,) int32, b * S + s;
        scales (M,), the weight, over the bag's count in mean slots, or None.

    Raises:
        ValueError: if the arguments do not fit together; on a CPU also if M is too small.
    """
    check_lookup("bag_rows", values, offsets, weights, slots, batch_size, policy)
    if weights is not None and scale_dtype is None:
        raise ValueError("bag_rows: weights need scales; set scale_dtype=torch.float32")
    num_lookups = check_count("bag_rows", offsets, slots, batch_size, num_lookups)
    rows, sources, scales = torch.ops.recemb.bag_rows(
        values, offsets, weights, slots, batch_size, policy, sentinel, num_lookups, scale_dtype
    )
    return rows, sources, None if scale_dtype is None else scales


def _forward_on_cpu(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    batch_size: int,
    policy: str,
    out_dtype: torch.dtype,
    accumulate_float64: bool,
) -> Tensor:
    return reference.bag_forward(
        weight,
        values,
        offsets,
        weights,
        slots,
        batch_size=batch_size,
        policy=policy,
        out_dtype=out_dtype,
        accumulate_float64=accumulate_float64,
    )


def _forward_on_cuda(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    batch_size: int,
    policy: str,
    out_dtype: torch.dtype,
    accumulate_float64: bool,
) -> Tensor:
    from recemb.kernels.bag import launch

    return launch.bag_forward(
        weight,
        values,
        offsets,
        weights,
        slots,
        batch_size=batch_size,
        policy=policy,
        out_dtype=out_dtype,
        accumulate_float64=accumulate_float64,
    )


def _forward_fake(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    batch_size: int,
    policy: str,
    out_dtype: torch.dtype,
    accumulate_float64: bool,
) -> Tensor:
    return weight.new_empty((batch_size, slots.shape[1] * weight.shape[1]), dtype=out_dtype)


def _rows_on_cpu(
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    batch_size: int,
    policy: str,
    sentinel: int,
    num_lookups: int,
    scale_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, sources, scales = reference.bag_rows(
        values,
        offsets,
        weights,
        slots,
        batch_size=batch_size,
        policy=policy,
        sentinel=sentinel,
        num_lookups=num_lookups,
        scale_dtype=scale_dtype,
    )
    return rows, sources, values.new_empty(0, dtype=torch.float32) if scales is None else scales


def _rows_on_cuda(
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    batch_size: int,
    policy: str,
    sentinel: int,
    num_lookups: int,
    scale_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from recemb.kernels.bag import launch

    rows, sources, scales = launch.bag_rows(
        values,
        offsets,
        weights,
        slots,
        batch_size=batch_size,
        policy=policy,
        sentinel=sentinel,
        num_lookups=num_lookups,
        scale_dtype=scale_dtype,
    )
    return rows, sources, values.new_empty(0, dtype=torch.float32) if scales is None else scales


def _rows_fake(
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    batch_size: int,
    policy: str,
    sentinel: int,
    num_lookups: int,
    scale_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        values.new_empty(
            num_lookups, dtype=torch.int32 if sentinel < INT32_SENTINEL else torch.int64
        ),
        values.new_empty(num_lookups, dtype=torch.int32),
        values.new_empty(
            0 if scale_dtype is None else num_lookups, dtype=scale_dtype or torch.float32
        ),
    )


torch.library.impl("recemb::bag_forward", "cpu", _forward_on_cpu)
torch.library.impl("recemb::bag_forward", "cuda", _forward_on_cuda)
torch.library.register_fake("recemb::bag_forward", _forward_fake)
torch.library.impl("recemb::bag_rows", "cpu", _rows_on_cpu)
torch.library.impl("recemb::bag_rows", "cuda", _rows_on_cuda)
torch.library.register_fake("recemb::bag_rows", _rows_fake)
