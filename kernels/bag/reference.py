"""The pooled lookup in plain torch: the truth for the kernels, and the path on CPUs.

Shapes: `S` slots, `F` features, `B` bags per feature, `N` ids, `M` lookups, `R` rows, `D` width.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recemb.kernels.bag.slots import HASHED, INT32_SENTINEL, MEAN
from recemb.kernels.hashing import hash_rows

_CHUNK_LOOKUPS = 1 << 15
"""Rows that are widened at a time, so that they stay in the cache."""

_CHUNK_HASHES = 1 << 13
"""Ids that are hashed at a time, likewise."""


class Lookups(NamedTuple):
    """Every read of a row that a batch asks for, slot after slot, in the order of the ids.

    Attributes:
        rows: (M,) int64, in the buffer; -1 for an ignored id.
        spans: of each slot, where its ids start and end in `values`.
        lengths: (S, B) int64, ids per bag, ignored ones included.
        counts: (S, B) int64, ids per bag that are not ignored; `lengths` itself if none is.
    """

    rows: Tensor
    spans: list[tuple[int, int]]
    lengths: Tensor
    counts: Tensor

    def of_ids(self, numbers: Tensor) -> Tensor:
        """Return a number of each lookup (M,) from one of each id (N,)."""
        return torch.cat([numbers[:0], *(numbers[start:end] for start, end in self.spans)])

    def of_bags(self, numbers: Tensor) -> Tensor:
        """Return a number of each lookup (M,) from one of each bag (S, B)."""
        if self.rows.numel() == 0:
            return numbers.new_empty(0)
        shortest, longest = torch.aminmax(self.lengths)
        if shortest == longest:
            return numbers.unsqueeze(2).expand(-1, -1, int(longest)).flatten()
        return numbers.flatten().repeat_interleave(
            self.lengths.flatten(), output_size=self.rows.shape[0]
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
    """Return the pooled rows (B, S * D); the arguments are those of `recemb.kernels.bag`.

    Accumulates in float64 if `weight` is float64, or if asked to, else in float32.
    """
    is_wide = accumulate_float64 or weight.dtype == torch.float64
    dtype = torch.float64 if is_wide else torch.float32
    found = find_lookups(values, offsets, slots, batch_size=batch_size, policy=policy)
    rows = found.rows
    factors = None if weights is None else found.of_ids(weights).to(dtype)
    if found.counts is not found.lengths:
        factors = None if factors is None else factors[rows >= 0]
        rows = rows[rows >= 0]
    bounds = functional.pad(found.counts.flatten().cumsum(0), (1, 0))
    sums = _sum_segments(weight, rows, bounds, factors, dtype)
    num_slots, width = slots.shape[1], weight.shape[1]
    sums = sums.view(num_slots, batch_size, width)
    out = torch.empty(batch_size, num_slots, width, dtype=dtype, device=weight.device)
    if bool((slots[4] & MEAN).any()):
        torch.mul(sums, _bag_scales(found, slots, dtype).unsqueeze(2), out=out.transpose(0, 1))
    else:
        out.transpose(0, 1).copy_(sums)
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
    rows[:num_found] = found.rows
    if found.counts is not found.lengths:
        rows[:num_found].masked_fill_(found.rows < 0, sentinel)
    num_slots = slots.shape[1]
    of_bags = torch.arange(batch_size * num_slots, dtype=torch.int32, device=values.device)
    sources = found.of_bags(of_bags.view(batch_size, num_slots).t())
    sources = functional.pad(sources, (0, num_lookups - num_found))
    if scale_dtype is None:
        return rows, sources, None
    scales = scales_of(found, weights, slots, scale_dtype)
    return rows, sources, functional.pad(scales, (0, num_lookups - num_found))


def find_lookups(
    values: Tensor, offsets: Tensor | None, slots: Tensor, *, batch_size: int, policy: str
) -> Lookups:
    """Return the lookups of a batch; see `recemb.kernels.bag.bag_forward` for the arguments."""
    if batch_size == 0 or slots.shape[1] == 0:
        nothing = torch.zeros(slots.shape[1], batch_size, dtype=torch.int64, device=values.device)
        return Lookups(nothing.flatten(), [], nothing, nothing)
    if offsets is None:
        offsets = torch.arange(values.shape[0] + 1, device=values.device)
    bounds = offsets.long()
    starts = bounds[slots[0] * batch_size].tolist()
    ends = bounds[(slots[0] + 1) * batch_size].tolist()
    lengths = bounds.diff().view(-1, batch_size)[slots[0]]
    spans = list(zip(starts, ends, strict=True))
    rows = torch.empty(
        sum(end - start for start, end in spans), dtype=torch.int64, device=values.device
    )
    first, is_complete = 0, True
    for (start, end), slot in zip(spans, slots.t().tolist(), strict=True):
        part = rows[first : first + end - start]
        is_complete &= _write_rows(part, values[start:end], slot, policy)
        first += end - start
    if is_complete:
        return Lookups(rows, spans, lengths, lengths)
    bags = torch.arange(lengths.numel(), device=values.device)
    bags = bags.repeat_interleave(lengths.flatten())
    counts = torch.zeros(lengths.numel(), dtype=torch.int64, device=values.device)
    counts.index_add_(0, bags, (rows >= 0).long())
    return Lookups(rows, spans, lengths, counts.view_as(lengths))


def scales_of(found: Lookups, weights: Tensor | None, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what each row is multiplied by (M,): its weight, over the count in mean slots."""
    scales = found.of_bags(_bag_scales(found, slots, dtype))
    return scales if weights is None else scales * found.of_ids(weights).to(dtype)


def _write_rows(out: Tensor, ids: Tensor, slot: list[int], policy: str) -> bool:
    """Write the row of each id of a slot, -1 for an ignored one; return whether none is."""
    _, first_row, num_rows, seed, flags = slot
    if flags & HASHED:
        for first in range(0, ids.numel(), _CHUNK_HASHES):
            part = slice(first, first + _CHUNK_HASHES)
            torch.add(hash_rows(ids[part], seed, num_rows), first_row, out=out[part])
        return True
    torch.add(ids, first_row, out=out)
    if policy == "trust" or ids.numel() == 0:
        return True
    smallest, largest = torch.aminmax(ids)
    if smallest >= 0 and largest < num_rows:
        return True
    out.masked_fill_((ids < 0) | (ids >= num_rows), first_row if policy == "clamp" else -1)
    return policy == "clamp"


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
