"""The fused lookup: gather and pool in the forward pass, update the tables in the backward pass.

Shapes: `B` examples, `S` lookups, `N` ids of all lookups, `R` rows of a buffer, `D` its width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recemb.tables.gather import gather_bags, gather_rows
from recemb.tables.update import Touched, group_by_row


@dataclass(frozen=True, kw_only=True)
class Lookups:
    """The addressed ids of one batch.

    Attributes:
        rows: (N,) rows of the buffer, int32 or int64; -1, in lookups without bags alone, for
            an id that has none. Example by example if `offsets` is None and the lookups are
            pooled, lookup by lookup otherwise.
        offsets: (S*B+1,) where each bag begins, lookup by lookup; None if lookup n is output row
            n: one id per bag, or no pooling.
        lengths: (S*B,) number of ids of each bag; None when `offsets` is.
        scales: (N,) float32, weight of each id over the bag's length for mean pooling; None for 1.
        num_slots: S.
        num_outputs: rows of the output, B*S when pooled.
        sizes: number of ids of each of the S lookups; None if they are pooled.
        may_be_absent: whether a row may be -1.
        are_disjoint: whether no two of the S lookups can read the same row.
    """

    rows: Tensor
    offsets: Tensor | None
    lengths: Tensor | None
    scales: Tensor | None
    num_slots: int
    num_outputs: int
    sizes: tuple[int, ...] | None = None
    may_be_absent: bool = False
    are_disjoint: bool = False

    @property
    def differentiable(self) -> Tensor | None:
        """Return the tensor for which `scale_gradient` gives a gradient: the scales."""
        return self.scales

    @cached_property
    def touched(self) -> Touched:
        """Return the lookups grouped by row; sorted once, whoever asks."""
        scales = None if self.scales is None else self.scales.detach()
        if not self.may_be_absent:
            return group_by_row(self.rows, self.sources, scales)
        keep = (self.rows >= 0).nonzero().view(-1)
        return group_by_row(
            self.rows[keep], keep.to(self.rows.dtype), None if scales is None else scales[keep]
        )

    @property
    def sources(self) -> Tensor | None:
        """Return the output row (b*S + s) of each lookup (N,); None for its own position."""
        if self.lengths is None:
            return None
        batch_size = self.num_outputs // self.num_slots
        bags = torch.arange(self.num_outputs, dtype=self.rows.dtype, device=self.rows.device)
        outputs = bags.view(batch_size, self.num_slots).t().reshape(-1)
        return outputs.repeat_interleave(self.lengths, output_size=self.rows.numel())

    def gather(self, weight: Tensor) -> Tensor:
        """Return float32 vectors of `weight` (R, D): pooled (B*S, D), row b*S + s; or (N, D)."""
        if self.offsets is None:
            if not self.may_be_absent:
                return gather_rows(weight, self.rows)
            vectors = gather_rows(weight, self.rows.clamp(min=0))
            return vectors.masked_fill_((self.rows < 0).unsqueeze(1), 0)
        bags = gather_bags(weight, self.rows, self.offsets, self.scales)
        batch_size = self.num_outputs // self.num_slots
        by_slot = bags.view(self.num_slots, batch_size, weight.shape[1])
        return by_slot.transpose(0, 1).reshape(self.num_outputs, weight.shape[1])

    def scale_gradient(self, weight: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient (N,) of `scales`: each row times its bag's gradient.

        Args:
            weight: (R, D), before any update.
            grad: (B*S, D).
        """
        sources = self.sources
        assert sources is not None
        parts = []
        chunk = max(1, _CHUNK_VALUES // weight.shape[1])
        for first in range(0, self.rows.numel(), chunk):
            vectors = gather_rows(weight, self.rows[first : first + chunk])
            parts.append((vectors * grad.index_select(0, sources[first : first + chunk])).sum(1))
        return torch.cat(parts) if parts else weight.new_zeros(0, dtype=torch.float32)


_CHUNK_VALUES = 1 << 20
"""Values of a chunk of rows whose products with the gradient are summed: 4 MB per temporary."""


class Lookup(Protocol):
    """What FusedLookup reads from, and hands its gradients to."""

    def read(self, lookups: Sequence[Any]) -> tuple[Tensor, ...]:
        """Return the vectors that `lookups` address."""
        ...

    def scale_gradients(
        self, lookups: Sequence[Any], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Return the gradient of the scales of each of `lookups`, from rows before the update."""
        ...

    def update(self, lookups: Sequence[Any], grads: Sequence[Tensor | None]) -> None:
        """Update the rows that `lookups` addressed, given the gradients of what `read` returned."""
        ...


class FusedLookup(torch.autograd.Function):
    """Reads tables that autograd does not see, and updates them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        lookup: Lookup,
        lookups: Sequence[Any],
        *scales: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Return what `lookup` reads.

        Args:
            ctx: autograd's.
            anchor: a scalar that requires grad, so that the backward pass reaches this function.
            lookup: reads, and later updates.
            lookups: the addressed ids.
            scales: those of each of `lookups`, so that autograd sees them.
        """
        ctx.lookup, ctx.lookups = lookup, lookups
        ctx.set_materialize_grads(False)
        return lookup.read(lookups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Update the tables; return the gradients of the scales."""
        wanted = ctx.needs_input_grad[3:]
        scales: list[Tensor | None] = [None] * len(wanted)
        if any(wanted):
            found = ctx.lookup.scale_gradients(ctx.lookups, grads)
            scales = [g if is_wanted else None for g, is_wanted in zip(found, wanted, strict=True)]
        ctx.lookup.update(ctx.lookups, grads)
        return (None, None, None, *scales)


def fused_lookup(
    lookup: Lookup, lookups: Sequence[Any], scales: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Return what `lookup` reads; a backward pass through it updates the rows.

    Args:
        lookup: reads, and later updates.
        lookups: the addressed ids.
        scales: those of each of `lookups`, for which the backward pass returns gradients.
    """
    anchor = torch.zeros((), requires_grad=True)
    apply: Callable[..., tuple[Tensor, ...]] = FusedLookup.apply  # torch gives it no types
    return apply(anchor, lookup, lookups, *scales)
