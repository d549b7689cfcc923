"""The search in plain torch: what the kernels are tested against, and what a CPU runs.

Shapes: `B` examples, `L` places in a history, `K` selected, `R` rows, `DA`, `DR` widths of a part.
Unlike the kernels, it gathers the history, (B, L, DA), one part at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from recemb.kernels import bag_layout


def forward(
    attention: Sequence[Tensor],
    representation: Sequence[Tensor],
    histories: Sequence[Tensor],
    targets: Sequence[Tensor],
    lengths: Tensor,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums (B, sum of DR), positions (B, K) int64 and probabilities (B, K)."""
    scores = _dots(attention, histories, targets)
    positions = select(scores, lengths, k)
    chosen = scores.gather(1, positions.clamp_min(0)).masked_fill(positions < 0, -torch.inf)
    # A row without behaviours has nothing but -inf, whose softmax is NaN.
    probabilities = chosen.softmax(1).masked_fill(positions < 0, 0)
    out = torch.cat(
        [
            _weighted_sum(table, selected_rows(history, positions), probabilities)
            for table, history in zip(representation, histories, strict=True)
        ],
        dim=1,
    )
    return out.to(representation[0].dtype), positions, probabilities


def backward(
    grad: Tensor,
    grad_probabilities: Tensor,
    attention: Sequence[Tensor],
    representation: Sequence[Tensor],
    histories: Sequence[Tensor],
    positions: Tensor,
    probabilities: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the selected scores (B, K) and of the targets (B, sum of DA)."""
    selected = [selected_rows(history, positions) for history in histories]
    vectors = torch.split(grad, [table.shape[1] for table in representation], dim=1)
    dots = _dots(representation, selected, vectors) + grad_probabilities
    grad_scores = softmax_gradient(dots, probabilities)
    of_targets = [
        _weighted_sum(table, rows, grad_scores)
        for table, rows in zip(attention, selected, strict=True)
    ]
    return grad_scores, torch.cat(of_targets, dim=1)


def select(scores: Tensor, lengths: Tensor, k: int) -> Tensor:
    """Return where the K greatest of the first `lengths` scores are (B, K), ascending, then -1.

    Of equal scores the one with the lower position wins.
    """
    size = scores.shape[1]
    place = torch.arange(size, device=scores.device)
    valid = place < lengths.unsqueeze(1)
    # Padding ties with a valid -inf, but comes after it; so the first `lengths` ranks are valid.
    masked = scores.masked_fill(~valid, -torch.inf)
    order = masked.sort(dim=1, descending=True, stable=True).indices
    kept = torch.where(valid, order, size)[:, :k].sort(dim=1).values
    kept = torch.nn.functional.pad(kept, (0, k - kept.shape[1]), value=size)
    return torch.where(kept < size, kept, -1)


def selected_rows(history: Tensor, positions: Tensor) -> Tensor:
    """Return the ids (B, K) at `positions`; -1 where there is none."""
    return torch.where(positions < 0, -1, history.gather(1, positions.clamp_min(0)))


def softmax_gradient(grad: Tensor, probabilities: Tensor) -> Tensor:
    """Return the gradient (B, K) of what became `probabilities`."""
    product = probabilities * grad
    return product - probabilities * product.sum(1, keepdim=True)


def _dots(
    tables: Sequence[Tensor], histories: Sequence[Tensor], vectors: Sequence[Tensor]
) -> Tensor:
    """Return the sum over parts of rows times vectors (B, L)."""
    total = None
    for table, history, vector in zip(tables, histories, vectors, strict=True):
        rows = _gather(table, history)
        dots = torch.einsum("bld,bd->bl", rows, vector.to(rows.dtype))
        total = dots if total is None else total + dots
    assert total is not None
    return total


def _weighted_sum(table: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    rows = _gather(table, ids)
    return torch.einsum("bkd,bk->bd", rows, weights.to(rows.dtype))


def _gather(table: Tensor, ids: Tensor) -> Tensor:
    """Return rows (B, L, D) in the accumulator's type; zeros for ids outside the table."""
    dtype = bag_layout.accumulator(table.dtype)
    if not table.shape[0]:
        return table.new_zeros(*ids.shape, table.shape[1], dtype=dtype)
    present = (ids >= 0) & (ids < table.shape[0])
    return table[torch.where(present, ids, 0)].to(dtype) * present.unsqueeze(-1)
