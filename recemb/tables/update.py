"""The update of the rows that a batch touched: sort, sum duplicates, apply the formula.

Shapes: `N` lookups, `U` distinct rows among them, `G` rows of the gradient, `R` rows of a buffer,
`D` embedding_dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recemb.tables.formula import Formula
from recemb.tables.gather import gather_rows, write_rows
from recemb.tables.rounding import RowRounding

_CHUNK_VALUES = 1 << 20
"""Values of a chunk of distinct rows: 4 MB per temporary. Measured at 50k rows of 16 values: chunks
of 0.5 MB took a fifth longer, 8 MB were not faster."""

_CHUNK_ROWS_ALL = 1 << 16
"""Rows of a block when every row of the table is visited."""


@dataclass(frozen=True, kw_only=True)
class Touched:
    """The lookups of a step, grouped by row.

    Attributes:
        rows: (U,) int64, the distinct rows, ascending.
        starts: (U+1,) where each row's lookups begin in `sources`.
        sources: (N,) the gradient row of each lookup, grouped by row, in the lookups' order.
        scales: (N,) what each lookup's gradient is multiplied by, or None for 1.
    """

    rows: Tensor
    starts: Tensor
    sources: Tensor
    scales: Tensor | None

    def gradient(self, grad: Tensor, first: int, last: int) -> Tensor:
        """Return the summed gradients (last-first, D) of `rows[first:last]`.

        Args:
            grad: (G, D) float32.
            first: index of the first row.
            last: index after the last row.
        """
        if grad.shape[0] == 0 or first == last:
            return grad.new_zeros(last - first, grad.shape[1])
        starts = self.starts[first : last + 1]
        if first > 0 or last < self.rows.numel():
            begin, end = (int(x) for x in starts[[0, -1]])
            starts = starts - begin
            sources = self.sources[begin:end]
            scales = None if self.scales is None else self.scales[begin:end]
        else:
            sources, scales = self.sources, self.scales
        return F.embedding_bag(
            sources,
            grad,
            starts,
            mode="sum",
            per_sample_weights=scales,
            include_last_offset=True,
        )


def group_by_row(rows: Tensor, sources: Tensor | None, scales: Tensor | None) -> Touched:
    """Return the lookups grouped by row; the sort is stable, so the result is deterministic.

    Args:
        rows: (N,) int32 or int64.
        sources: (N,) the gradient row of each lookup; None for its own position.
        scales: (N,), or None for 1.
    """
    ordered, order = torch.sort(rows, stable=True)
    distinct, counts = torch.unique_consecutive(ordered, return_counts=True)
    starts = torch.zeros(distinct.numel() + 1, dtype=rows.dtype, device=rows.device)
    torch.cumsum(counts, 0, dtype=rows.dtype, out=starts[1:])
    return Touched(
        rows=distinct.long(),
        starts=starts,
        sources=order.to(rows.dtype) if sources is None else sources[order],
        scales=None if scales is None else scales[order],
    )


def update_touched(
    weight: Tensor,
    state: Mapping[str, Tensor],
    touched: Touched,
    grad: Tensor,
    formula: Formula,
    rounding: RowRounding | None = None,
) -> None:
    """Apply `formula` once to each touched row of `weight` (R, D) and `state`, in place.

    Args:
        weight: (R, D), of any floating-point type; the formula works in float32.
        state: by the names of `formula.STATE_PARTS`.
        touched: the lookups.
        grad: (G, D) float32.
        formula: this step's.
        rounding: how values become the type of `weight`; None if that is float32 or wider.
    """
    num_rows = touched.rows.numel()
    chunk = max(1, _CHUNK_VALUES // weight.shape[1])
    for first in range(0, num_rows, chunk):
        last = min(first + chunk, num_rows)
        rows = touched.rows[first:last]
        block = gather_rows(weight, rows)
        if rounding is not None:
            block = rounding.widen(block, rows)
        parts = {name: gather_rows(part, rows) for name, part in state.items()}
        formula.apply(block, touched.gradient(grad, first, last), parts)
        write_rows(weight, rows, block if rounding is None else rounding.apply(block, rows))
        for name, part in parts.items():
            write_rows(state[name], rows, part)


def update_all(
    weight: Tensor,
    state: Mapping[str, Tensor],
    touched: Touched,
    grad: Tensor,
    formula: Formula,
    rounding: RowRounding | None = None,
) -> None:
    """Apply `formula` to every row of `weight` (R, D) and `state`, in place; g = 0 if untouched.

    The arguments are those of `update_touched`.
    """
    blocks = torch.arange(0, weight.shape[0] + _CHUNK_ROWS_ALL, _CHUNK_ROWS_ALL)
    edges = torch.searchsorted(touched.rows, blocks.to(touched.rows.device)).tolist()
    for k, begin in enumerate(range(0, weight.shape[0], _CHUNK_ROWS_ALL)):
        end = min(begin + _CHUNK_ROWS_ALL, weight.shape[0])
        dense = torch.zeros((end - begin, weight.shape[1]), dtype=grad.dtype, device=grad.device)
        rows = touched.rows[edges[k] : edges[k + 1]] - begin
        dense.index_copy_(0, rows, touched.gradient(grad, edges[k], edges[k + 1]))
        parts = {name: part[begin:end] for name, part in state.items()}
        if rounding is None:
            formula.apply(weight[begin:end], dense, parts)
            continue
        every = torch.arange(begin, end, device=weight.device)
        block = rounding.widen(weight[begin:end].float(), every)
        formula.apply(block, dense, parts)
        weight[begin:end] = rounding.apply(block, every)
