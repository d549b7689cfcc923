"""Reading and writing rows of a buffer, of any floating-point type.

Vectors are float32 whatever the buffer holds; sums are made in float32.

Shapes: `N` rows, `R` rows of the buffer, `D` its width, `G` bags.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from recemb.tables.fbgemm_ops import gather_half, is_available


def gather_rows(buffer: Tensor, rows: Tensor) -> Tensor:
    """Return rows (N,) of `buffer` (R, D), or (R,), as float32; float64 stays."""
    if buffer.dtype not in (torch.float32, torch.float64):
        if _is_served_by_fbgemm(buffer):
            return gather_half(buffer, rows, torch.arange(rows.numel() + 1), None)
        return buffer.index_select(0, rows).float()
    if buffer.dim() == 1:
        return buffer.index_select(0, rows)
    if buffer.shape[1] == 1:
        return buffer.view(-1).index_select(0, rows).unsqueeze(1)
    if rows.is_cuda:
        return buffer.index_select(0, rows)
    # A bag of one id is the row itself, and embedding_bag prefetches where index_select does not.
    offsets = torch.arange(rows.numel() + 1, dtype=rows.dtype)
    return F.embedding_bag(rows, buffer, offsets, mode="sum", include_last_offset=True)


def gather_bags(buffer: Tensor, rows: Tensor, offsets: Tensor, scales: Tensor | None) -> Tensor:
    """Return the sum (G, D) of each bag's rows, float32; float64 stays.

    Args:
        buffer: (R, D).
        rows: (N,).
        offsets: (G+1,) where each bag begins, of the dtype of `rows`.
        scales: (N,) what each row is multiplied by, or None for 1.
    """
    if buffer.dtype in (torch.float32, torch.float64):
        return F.embedding_bag(
            rows, buffer, offsets, mode="sum", per_sample_weights=scales, include_last_offset=True
        )
    if _is_served_by_fbgemm(buffer) and (scales is None or not scales.requires_grad):
        return gather_half(buffer, rows, offsets, scales)
    # embedding_bag rounds its sums to the buffer's type, so rows are widened first.
    places = torch.arange(rows.numel(), dtype=rows.dtype, device=rows.device)
    return F.embedding_bag(
        places,
        gather_rows(buffer, rows),
        offsets,
        mode="sum",
        per_sample_weights=scales,
        include_last_offset=True,
    )


def _is_served_by_fbgemm(buffer: Tensor) -> bool:
    is_half = buffer.dtype == torch.float16 and buffer.is_cpu and buffer.dim() == 2
    return is_half and not buffer.requires_grad and is_available()


def write_rows(buffer: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write `values` (U, D) or (U,) to the distinct `rows` (U,) of `buffer`, in place.

    They have the buffer's dtype already.
    """
    if buffer.dim() == 2 and buffer.shape[1] == 1:
        buffer, values = buffer.view(-1), values.view(-1)
    if buffer.dim() == 2:
        # The same bits in fewer elements; index_copy_ goes element by element.
        wide = 8 // buffer.element_size()
        if wide > 1 and buffer.shape[1] % wide == 0:
            buffer, values = buffer.view(torch.float64), values.view(torch.float64)
    buffer.index_copy_(0, rows, values)
