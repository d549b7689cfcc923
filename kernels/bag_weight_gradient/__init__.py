"""The gradient of a pooled lookup's per-sample weights: one dot product per id.

Shapes: `S` slots, `F` features, `B` bags per feature, `N` ids, `R` rows, `D` width.
"""

import torch
from torch import Tensor

from recemb.kernels.bag.slots import check_lookup, check_table
from recemb.kernels.bag_weight_gradient import reference

__all__ = ["bag_weight_gradient"]

torch.library.define(
    "recemb::bag_weight_gradient",
    "(Tensor weight, Tensor values, Tensor? offsets, Tensor slots, Tensor grad, "
    "SymInt batch_size, str policy) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


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
    """Return the gradient of a loss with respect to the per-sample weight of each id.

    For id p of bag b, summed over the slots s of its feature, with c = 1 in sum slots and
    1 / (ids of the bag) in mean slots: `c * <weight[row of p in s], grad[b, s]>`. Ignored ids get
    zero. The rows must be those that the forward pass read: call it before the update.

    DETERMINISM: bit-equal repeats; one program owns an id, no atomics.
    ACCUMULATION: float32 (float64 on a CPU if `weight` is float64).
    SAVED FOR BACKWARD: nothing; there is no second derivative.

    Args:
        weight: (R, D) float32, float16 or bfloat16, contiguous.
        values: (N,) int64 or int32, feature after feature.
        offsets: (F * B + 1,) int64 or int32, from 0 to N, or None for one id per bag.
        slots: (5, S) int64, from `recemb.kernels.bag.pack_slots`.
        grad: (B, S * D), d loss / d output of the lookup.
        batch_size: B.
        policy: as in the lookup.

    Raises:
        ValueError: if the arguments do not fit together.
    """
    owner = "bag_weight_gradient"
    check_lookup(owner, values, offsets, None, slots, batch_size, policy)
    check_table(owner, weight, values)
    expected = (batch_size, slots.shape[1] * weight.shape[1])
    if grad.shape != expected:
        raise ValueError(f"{owner}: grad must be (B, S * D) = {expected}, got {tuple(grad.shape)}")
    found: Tensor = torch.ops.recemb.bag_weight_gradient(
        weight, values, offsets, slots, grad, batch_size, policy
    )
    return found


def _on_cpu(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    slots: Tensor,
    grad: Tensor,
    batch_size: int,
    policy: str,
) -> Tensor:
    return reference.bag_weight_gradient(
        weight, values, offsets, slots, grad, batch_size=batch_size, policy=policy
    )


def _on_cuda(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    slots: Tensor,
    grad: Tensor,
    batch_size: int,
    policy: str,
) -> Tensor:
    from recemb.kernels.bag_weight_gradient import kernel

    return kernel.bag_weight_gradient(
        weight, values, offsets, slots, grad.contiguous(), batch_size=batch_size, policy=policy
    )


def _fake(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    slots: Tensor,
    grad: Tensor,
    batch_size: int,
    policy: str,
) -> Tensor:
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return weight.new_empty(values.shape, dtype=dtype)


torch.library.impl("recemb::bag_weight_gradient", "cpu", _on_cpu)
torch.library.impl("recemb::bag_weight_gradient", "cuda", _on_cuda)
torch.library.register_fake("recemb::bag_weight_gradient", _fake)
