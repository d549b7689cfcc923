"""The gradient of a pooled lookup's per-sample weights in Triton.

Shapes: `S` slots, `F` features, `B` bags per feature, `N` ids, `R` rows, `D` width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recemb.kernels.bag.kernel import (
    find_bags,
    find_rows_of_slot,
    read_slot,
    scale_bags,
)
from recemb.kernels.bag.launch import launch_options
from recemb.kernels.bag.slots import POLICIES


@triton.jit
def _bag_weight_gradient_kernel(
    weight,
    values,
    offsets,
    slots,
    grad,
    out,
    batch_size,
    num_slots,
    D: tl.constexpr,
    BLOCK_BAGS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    ONE_ID: tl.constexpr,
    POLICY: tl.constexpr,
):
    """Write the gradient of one feature's BLOCK_BAGS bags.

    Of each id: the sum over the feature's slots of scale * <row, grad of the bag in the slot>.

    One program owns an id's result and visits the feature's slots in ascending order, so nothing
    is added across programs. The slots are found by comparing all slots' features with this one.
    """
    num_blocks = tl.cdiv(batch_size, BLOCK_BAGS)
    feature = (tl.program_id(0) // num_blocks).to(tl.int64)
    bag = (tl.program_id(0) % num_blocks) * BLOCK_BAGS + tl.arange(0, BLOCK_BAGS)[:, None]
    start, length = find_bags(offsets, feature, bag, batch_size, ONE_ID)
    column = tl.arange(0, BLOCK_D)[None, :]
    every = tl.arange(0, BLOCK_SLOTS)
    features = tl.load(slots + every, mask=every < num_slots, other=-1)
    num_mine = tl.sum(tl.where(features == feature, 1, 0))
    for i in range(0, tl.max(length)):
        inside = i < length
        x = tl.load(values + start + i, mask=inside, other=0)
        total = tl.zeros([BLOCK_BAGS, 1], tl.float32)
        slot = -1
        for _ in range(0, num_mine):
            slot = tl.min(tl.where((features == feature) & (every > slot), every, BLOCK_SLOTS))
            _, first_row, num_rows, seed, is_hashed, is_mean = read_slot(slots, slot, num_slots)
            row = find_rows_of_slot(x, first_row, num_rows, seed, is_hashed, POLICY)
            row = tl.where(inside, row, -1)
            mask = (row >= 0) & (column < D)
            w = tl.load(weight + row * D + column, mask=mask, other=0.0).to(tl.float32)
            of_bag = (bag.to(tl.int64) * num_slots + slot) * D
            g = tl.load(grad + of_bag + column, mask=mask, other=0.0).to(tl.float32)
            scale = scale_bags(
                values, start, length, first_row, num_rows, is_hashed, is_mean, BLOCK_BAGS, POLICY
            )
            total += tl.sum(w * g, 1, keep_dims=True) * scale
        tl.store(out + start + i, total, mask=inside)


def bag_weight_gradient(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    slots: Tensor,
    grad: Tensor,
    *,
    batch_size: int,
    policy: str = "trust",
    block_bags: int | None = None,
) -> Tensor:
    """Return d loss / d weights (N,) float32; the arguments are those of the op.

    Blocks hold 1024 values with 4 warps: a row and its gradient together are 16 values per thread.
    """
    out = torch.empty(values.shape[0], dtype=torch.float32, device=weight.device)
    width, num_slots = weight.shape[1], slots.shape[1]
    if out.numel() == 0:
        return out
    if num_slots * width * batch_size == 0:
        return out.zero_()
    num_bags = values.shape[0] if offsets is None else offsets.shape[0] - 1
    block_d = triton.next_power_of_2(width)
    bags = block_bags or max(1, min(64, 1024 // block_d))
    _bag_weight_gradient_kernel[(triton.cdiv(batch_size, bags) * (num_bags // batch_size),)](
        weight,
        values,
        values if offsets is None else offsets,
        slots,
        grad,
        out,
        batch_size,
        num_slots,
        D=width,
        BLOCK_BAGS=bags,
        BLOCK_D=block_d,
        BLOCK_SLOTS=triton.next_power_of_2(num_slots),
        ONE_ID=offsets is None,
        POLICY=POLICIES.index(policy),
        **launch_options(4, 128),
    )
    return out
