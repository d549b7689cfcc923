"""The pooled lookup in plain torch: the truth for the kernels, and the path on CPUs.

Shapes: `S` slots, `F` features, `B` bags per feature, `N` ids, `M` lookups, `R` rows, `D` width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recemb.kernels.bag.slots import HASHED, INT32_SENTINEL, MEAN
from recemb.kernels.hashing import hash_rows

_CHUNK_LOOKUPS = 1 << 15
"""Rows that are widened at a time, so that they stay in the cache."""


class Lookups(NamedTuple):
    """Every read of a row that a batch asks for, slot after slot, in the order of the ids.

    Attributes:
        rows: (M,) int64, in the buffer; -1 for an ignored id.
        positions: (M,) int64, of the id in `values`.
        lengths: (S, B) int64, ids per bag, ignored ones included.
        counts: (S, B) int64, ids per bag that are not ignored.
    """

    rows: Tensor
    positions: Tensor
    lengths: Tensor
    counts: Tensor


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
    """Return the pooled rows (B, S * D); the arguments are those of `recemb.kernels.bag`.

    Accumulates in float64 if `weight` is float64, or if asked to, else in float32.
    """
    is_wide = accumulate_float64 or weight.dtype == torch.float64
    dtype = torch.float64 if is_wide else torch.float32
    if _has_one_id_per_bag(values, offsets):
        out = _read_single_ids(weight, values, weights, slots, batch_size, policy, dtype)
        return out.to(out_dtype)
    found = find_lookups(values, offsets, slots, batch_size=batch_size, policy=policy)
    rows, positions = found.rows, found.positions
    if found.counts is not found.lengths:
        rows, positions = rows[rows >= 0], positions[rows >= 0]
    factors = None if weights is None else weights[positions].to(dtype)
    bounds = functional.pad(found.counts.flatten().cumsum(0), (1, 0))
    sums = _sum_segments(weight, rows, bounds, factors, dtype)
    num_slots, width = slots.shape[1], weight.shape[1]
    sums = sums.view(num_slots, batch_size, width)
    out = torch.empty(batch_size, num_slots, width, dtype=dtype, device=weight.device)
    torch.mul(sums, _bag_scales(found, slots, dtype).unsqueeze(2), out=out.transpose(0, 1))
    return out.view(batch_size, num_slots * width).to(out_dtype)


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
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the row, the gradient row b * S + s and the scale of each lookup; see the op.

    Raises:
        ValueError: if the batch has more than `num_lookups` lookups.
    """
    found = find_lookups(values, offsets, slots, batch_size=batch_size, policy=policy)
    num_found = found.rows.shape[0]
    if num_found > num_lookups:
        raise ValueError(
            f"bag_rows: num_lookups is {num_lookups}, but the batch has {num_found} lookups; "
            "count them by count_lookups"
        )
    dtype = torch.int32 if sentinel < INT32_SENTINEL else torch.int64
    rows = values.new_full((num_lookups,), sentinel, dtype=dtype)
    rows[:num_found] = torch.where(found.rows < 0, sentinel, found.rows).to(dtype)
    bags = _bag_of(found.lengths)
    num_slots = slots.shape[1]
    sources = values.new_zeros((num_lookups,), dtype=torch.int32)
    sources[:num_found] = bags % batch_size * num_slots + bags // batch_size
    if scale_dtype is None:
        return rows, sources, None
    scales = scales_of(found, weights, slots, scale_dtype)
    return rows, sources, functional.pad(scales, (0, num_lookups - num_found))


def find_lookups(
    values: Tensor, offsets: Tensor | None, slots: Tensor, *, batch_size: int, policy: str
) -> Lookups:
    """Return the lookups of a batch; see `recemb.kernels.bag.bag_forward` for the arguments."""
    num_slots = slots.shape[1]
    if offsets is None:
        offsets = torch.arange(values.shape[0] + 1, device=values.device)
    bounds = offsets.long()
    starts = bounds[slots[0] * batch_size]
    lengths = bounds.diff().view(-1, batch_size)[slots[0]]
    sizes = lengths.sum(1)
    num_lookups = int(sizes.sum())
    slot = torch.arange(num_slots, device=values.device)
    reads_in_order = torch.equal(starts, sizes.cumsum(0) - sizes)
    slot = slot.repeat_interleave(sizes, output_size=num_lookups)
    positions = torch.arange(num_lookups, device=values.device)
    if not reads_in_order:
        positions += (starts - sizes.cumsum(0) + sizes)[slot]
    ids = values[:num_lookups] if reads_in_order else values[positions]
    rows = _rows_of(ids.long(), slots, lambda column: column[slot], policy)
    if policy != "ignore" or not bool((rows < 0).any()):
        return Lookups(rows, positions, lengths, lengths)
    counts = torch.zeros(lengths.numel(), dtype=torch.int64, device=values.device)
    counts.index_add_(0, _bag_of(lengths), (rows >= 0).long())
    return Lookups(rows, positions, lengths, counts.view_as(lengths))


def scales_of(found: Lookups, weights: Tensor | None, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what each row is multiplied by (M,): its weight, over the count in mean slots."""
    scales = _bag_scales(found, slots, dtype).flatten()[_bag_of(found.lengths)]
    return scales if weights is None else scales * weights[found.positions].to(dtype)


def _rows_of(ids: Tensor, slots: Tensor, of_id: Callable[[Tensor], Tensor], policy: str) -> Tensor:
    """Return the row of each id; -1 for an ignored one.

    `of_id` turns a number per slot (S,) into one that broadcasts with `ids`.
    """
    first_row = of_id(slots[1])
    is_hashed = (slots[4] & HASHED) > 0
    if bool(is_hashed.all()):
        return hash_rows(ids, of_id(slots[3]), of_id(slots[2])) + first_row
    is_used = None
    rows = ids
    if policy != "trust":
        is_used = (ids >= 0) & (ids < of_id(slots[2]))
        rows = torch.where(is_used, ids, 0)
    if bool(is_hashed.any()):
        is_hashed = of_id(is_hashed)
        rows = torch.where(is_hashed, hash_rows(ids, of_id(slots[3]), of_id(slots[2])), rows)
        is_used = None if is_used is None else is_used | is_hashed
    rows = rows + first_row
    return torch.where(is_used, rows, -1) if policy == "ignore" and is_used is not None else rows


def _has_one_id_per_bag(values: Tensor, offsets: Tensor | None) -> bool:
    if offsets is None:
        return True
    return offsets.shape[0] == values.shape[0] + 1 and bool((offsets.diff() == 1).all())


def _read_single_ids(
    weight: Tensor,
    values: Tensor,
    weights: Tensor | None,
    slots: Tensor,
    batch_size: int,
    policy: str,
    dtype: torch.dtype,
) -> Tensor:
    """Return the rows of bags with one id each (B, S * D): nothing is summed, nothing averaged."""
    ids = values.view(-1, batch_size)[slots[0]].long()
    rows = _rows_of(ids, slots, lambda column: column.unsqueeze(1), policy).t().reshape(-1)
    out = weight.index_select(0, rows.clamp(min=0)).to(dtype)
    if weights is not None:
        out = out * weights.view(-1, batch_size)[slots[0]].t().reshape(-1, 1).to(dtype)
    if policy == "ignore":
        out = out.masked_fill_((rows < 0).unsqueeze(1), 0)
    return out.view(batch_size, slots.shape[1] * weight.shape[1])


def _sum_segments(
    weight: Tensor, rows: Tensor, bounds: Tensor, factors: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return the sum (K, D) of `factors` times rows between each two of `bounds` (K + 1,)."""
    if weight.dtype == dtype:
        return functional.embedding_bag(
            rows, weight, bounds, mode="sum", per_sample_weights=factors, include_last_offset=True
        )
    num_bags = bounds.shape[0] - 1
    sums = torch.empty(num_bags, weight.shape[1], dtype=dtype, device=weight.device)
    step = max(1, _CHUNK_LOOKUPS * num_bags // max(rows.shape[0], 1))
    for first in range(0, num_bags, step):
        part = bounds[first : first + step + 1]
        low, high = int(part[0]), int(part[-1])
        sums[first : first + step] = functional.embedding_bag(
            torch.arange(high - low, device=rows.device),
            weight.index_select(0, rows[low:high]).to(dtype),
            part - low,
            mode="sum",
            per_sample_weights=None if factors is None else factors[low:high],
            include_last_offset=True,
        )
    return sums


def _bag_scales(found: Lookups, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """Return one over the count in mean slots, and one in the others (S, B)."""
    is_mean = ((slots[4] & MEAN) > 0).unsqueeze(1)
    return torch.where(is_mean, found.counts.clamp(min=1), 1).to(dtype).reciprocal()


def _bag_of(lengths: Tensor) -> Tensor:
    """Return the number s * B + b of the bag of each lookup (M,)."""
    bags = torch.arange(lengths.numel(), device=lengths.device)
    return bags.repeat_interleave(lengths.flatten())
