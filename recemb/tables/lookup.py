"""The fused lookup: gather and pool in the forward pass, update the tables in the backward pass.

Shapes: `B` examples, `F` lookups, `N` ids, `R` rows of a buffer, `D` its width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recemb.tables.bags import Bags
from recemb.tables.update import Touched, gather_rows, group_by_row


@dataclass(frozen=True, kw_only=True)
class Lookups:
    """The addressed ids of one batch.

    Attributes:
        ids: (N,) the ids, feature by feature, all in range.
        rows: (N,) rows of the buffer, int32 where they fit. Example by example if `offsets` is
            None, feature by feature otherwise.
        offsets: (F*B+1,) where each bag begins, feature by feature; None if lookup n is output row
            n: one id per bag, or no pooling.
        lengths: (F*B,) number of ids of each bag; None when `offsets` is.
        scales: (N,) float32, weight of each id over the bag's length for mean pooling; None for 1.
        num_features: F.
        num_outputs: rows of the output, F*B when pooled.
    """

    ids: Tensor
    rows: Tensor
    offsets: Tensor | None
    lengths: Tensor | None
    scales: Tensor | None
    num_features: int
    num_outputs: int

    @cached_property
    def touched(self) -> Touched:
        """Return the lookups grouped by row; sorted once, whoever asks."""
        return group_by_row(self.rows, self.sources, self.scales)

    @property
    def sources(self) -> Tensor | None:
        """Return the output row (b*F + f) of each lookup (N,); None for its own position."""
        if self.lengths is None:
            return None
        batch_size = self.num_outputs // self.num_features
        bags = torch.arange(self.num_outputs, dtype=self.rows.dtype, device=self.rows.device)
        outputs = bags.view(batch_size, self.num_features).t().reshape(-1)
        return outputs.repeat_interleave(self.lengths, output_size=self.rows.numel())

    def gather(self, weight: Tensor) -> Tensor:
        """Return the pooled rows of `weight` (R, D), (F*B, D) with row b*F + f; or (N, D)."""
        if self.offsets is None:
            return gather_rows(weight, self.rows)
        bags = F.embedding_bag(
            self.rows,
            weight,
            self.offsets,
            mode="sum",
            per_sample_weights=self.scales,
            include_last_offset=True,
        )
        batch_size = self.num_outputs // self.num_features
        by_feature = bags.view(self.num_features, batch_size, weight.shape[1])
        return by_feature.transpose(0, 1).reshape(self.num_outputs, weight.shape[1])


def address(bags: Bags, ids: Tensor, first_rows: Tensor, is_mean: Tensor | None) -> Lookups:
    """Return the pooled lookups of `ids` (N,), which are in range.

    Args:
        bags: the bags that hold the ids.
        ids: (N,) what the bags' values became after the bounds check.
        first_rows: (F,) each lookup's first row, of the dtype that rows are to have.
        is_mean: (F,) bool, which lookups pool by the mean; None for none.
    """
    num_features = first_rows.numel()
    if bags.offsets is None or bags.lengths is None:
        rows = torch.empty(
            (bags.batch_size, num_features), dtype=first_rows.dtype, device=ids.device
        )
        torch.add(ids.view(num_features, bags.batch_size).t(), first_rows, out=rows)
        return Lookups(
            ids=ids,
            rows=rows.view(-1),
            offsets=None,
            lengths=None,
            scales=None,
            num_features=num_features,
            num_outputs=rows.numel(),
        )
    rows = shift(ids, first_rows, bags.sizes)
    return Lookups(
        ids=ids,
        rows=rows,
        offsets=bags.offsets.to(rows.dtype),
        lengths=bags.lengths,
        scales=_scales(bags, is_mean),
        num_features=num_features,
        num_outputs=num_features * bags.batch_size,
    )


def shift(ids: Tensor, first_rows: Tensor, sizes: list[int]) -> Tensor:
    """Return the buffer rows (N,) of ids that lie feature by feature, `sizes` of each."""
    per_feature = torch.tensor(sizes, device=ids.device)
    starts = first_rows.repeat_interleave(per_feature, output_size=ids.numel())
    return ids.to(first_rows.dtype) + starts


def _scales(bags: Bags, is_mean: Tensor | None) -> Tensor | None:
    weights = None if bags.weights is None else bags.weights.float()
    if is_mean is None or bags.lengths is None:
        return weights
    lengths = bags.lengths.view(is_mean.numel(), bags.batch_size)
    inverse = torch.where(is_mean.unsqueeze(1), 1 / lengths.clamp(min=1), 1.0).view(-1)
    scales = inverse.repeat_interleave(bags.lengths, output_size=bags.values.numel())
    return scales if weights is None else scales * weights


class Lookup(Protocol):
    """What FusedLookup reads from, and hands its gradients to."""

    def read(self, lookups: Sequence[Lookups]) -> tuple[Tensor, ...]:
        """Return the vectors that `lookups` address."""
        ...

    def update(self, lookups: Sequence[Lookups], grads: Sequence[Tensor | None]) -> None:
        """Update the rows that `lookups` addressed, given the gradients of what `read` returned."""
        ...


class FusedLookup(torch.autograd.Function):
    """Reads tables that autograd does not see, and updates them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, lookup: Lookup, lookups: Sequence[Lookups]
    ) -> tuple[Tensor, ...]:
        """Return what `lookup` reads.

        Args:
            ctx: autograd's.
            anchor: a scalar that requires grad, so that the backward pass reaches this function.
            lookup: reads, and later updates.
            lookups: the addressed ids.
        """
        ctx.lookup, ctx.lookups = lookup, lookups
        ctx.set_materialize_grads(False)
        return lookup.read(lookups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        """Update the tables; there is nothing to return."""
        ctx.lookup.update(ctx.lookups, grads)
        return (None, None, None)
