"""The launches of the pooled lookup's kernels, and how they are cut up.

Shapes: `S` slots, `F` features, `B` bags per feature, `N` ids, `M` lookups, `R` rows, `D` width.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from recemb.kernels.bag.kernel import _bag_forward_kernel, _bag_rows_kernel
from recemb.kernels.bag.slots import INT32_SENTINEL, POLICIES


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """How a launch is cut up; the result does not depend on it, bit for bit.

    Attributes:
        bags: bags of a program.
        unroll: rows of a bag that are on their way at once.
        num_warps: warps of a program.
        maxnreg: limit of registers, or None; a limit of 128 lets ptxas keep all loads in flight,
            where its default schedules them almost one by one.
    """

    bags: int
    unroll: int
    num_warps: int = 4
    maxnreg: int | None = None


def launch_options(num_warps: int, maxnreg: int | None) -> dict[str, int]:
    """Return the launch options that this platform knows: HIP has no limit of registers."""
    limit = {} if maxnreg is None or torch.version.hip else {"maxnreg": maxnreg}
    return {"num_warps": num_warps, **limit}


def choose_blocks(width: int, itemsize: int, mean_length: float, *, is_jagged: bool) -> Blocks:
    """Return the blocks for rows of `width` values of `itemsize` bytes and bags of `mean_length`.

    A program reads 4 KiB of rows at a time, 8 KiB where nothing else is in flight: 16 or 32 bytes
    per thread, so that loads can be 128 bits wide and four of them fit in the registers. Long bags
    get few bags per program, since a program runs as long as its longest bag. None of this was
    measured on a GPU; the ahead-of-time report says that nothing spills.
    """
    block_d = triton.next_power_of_2(width)
    num_warps = 4 if block_d <= 1024 else 8
    if not is_jagged:
        return Blocks(bags=max(1, min(128, 2048 // block_d)), unroll=1, num_warps=num_warps)
    if mean_length > 256 and block_d <= 256:
        bags = max(1, min(4, 512 // itemsize // block_d))
        return Blocks(bags=bags, unroll=8, num_warps=1, maxnreg=128)
    bags = max(1, min(128, 4096 // itemsize // block_d))
    return Blocks(bags=bags, unroll=4 if block_d <= 1024 else 1, num_warps=num_warps, maxnreg=128)


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
    blocks: Blocks | None = None,
) -> Tensor:
    """Return the pooled rows (B, S * D); the arguments are those of `recemb.kernels.bag`."""
    num_slots, width = slots.shape[1], weight.shape[1]
    out = torch.empty(batch_size, num_slots * width, dtype=out_dtype, device=weight.device)
    if out.numel() == 0:
        return out
    is_jagged = offsets is not None
    mean_length = values.shape[0] / max(offsets.shape[0] - 1, 1) if offsets is not None else 1.0
    blocks = blocks or choose_blocks(width, weight.element_size(), mean_length, is_jagged=is_jagged)
    grid = (triton.cdiv(batch_size, blocks.bags) * num_slots,)
    _bag_forward_kernel[grid](
        weight,
        values,
        values if offsets is None else offsets,
        values if weights is None else weights,
        slots,
        out,
        batch_size,
        num_slots,
        D=width,
        BLOCK_BAGS=blocks.bags,
        BLOCK_D=triton.next_power_of_2(width),
        UNROLL=blocks.unroll if is_jagged else 1,
        ONE_ID=not is_jagged,
        POLICY=POLICIES.index(policy),
        WEIGHTED=weights is not None,
        FLOAT64=accumulate_float64,
        **launch_options(blocks.num_warps, blocks.maxnreg),
    )
    return out


def bag_rows(
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    *,
    batch_size: int,
    policy: str,
    sentinel: int,
    num_lookups: int,
    scale_dtype: torch.dtype | None = torch.float32,
    block_bags: int | None = None,
    block_ids: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the row, the gradient row b * S + s and the scale of each lookup; see the op."""
    device, num_slots = values.device, slots.shape[1]
    dtype = torch.int32 if sentinel < INT32_SENTINEL else torch.int64
    rows = torch.empty(num_lookups, dtype=dtype, device=device)
    sources = torch.empty(num_lookups, dtype=torch.int32, device=device)
    scales = None
    if scale_dtype is not None:
        scales = torch.empty(num_lookups, dtype=scale_dtype, device=device)
    if num_lookups == 0:
        return rows, sources, scales
    if batch_size * num_slots == 0:
        return rows.fill_(sentinel), sources.zero_(), None if scales is None else scales.zero_()
    ids = 1 if offsets is None else block_ids or 16
    bags = block_bags or (256 if offsets is None else 32)
    _bag_rows_kernel[(triton.cdiv(batch_size, bags) * num_slots,)](
        values,
        values if offsets is None else offsets,
        values if weights is None else weights,
        slots,
        rows,
        sources,
        sources if scales is None else scales,
        batch_size,
        num_slots,
        num_lookups,
        sentinel,
        BLOCK_BAGS=bags,
        BLOCK_IDS=ids,
        BLOCK_SLOTS=triton.next_power_of_2(num_slots),
        ONE_ID=offsets is None,
        POLICY=POLICIES.index(policy),
        WEIGHTED=weights is not None,
        SCALED=scales is not None,
        num_warps=4,
    )
    return rows, sources, scales
