"""The update of one store: apply gradients, or collect them until all are there.

Shapes: `N` ids, `D` embedding_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.tables.fbgemm import FbgemmUpdate
from recemb.tables.formula import Formula
from recemb.tables.lookup import Lookups
from recemb.tables.store import GroupStore
from recemb.tables.triton import TritonUpdate
from recemb.tables.unit import AnyLookups
from recemb.tables.update import Touched, group_by_row, update_all, update_touched

UNFINISHED = (
    "tables: gradients of unfinished micro-batches are waiting, which a state_dict does not hold; "
    "save after the update, that is after a backward pass without defer_updates"
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Lookups of a store and the gradient of what they read.

    Attributes:
        lookups: the lookups.
        grad: (num_outputs, D) float32, contiguous.
    """

    lookups: AnyLookups
    grad: Tensor


class Updater:
    """Updates a store, once for each backward pass, by the sum of all its parts.

    Attributes:
        store: weights and state.
        learning_rate: of the next update.
        is_deferring: whether gradients are collected instead of applied.

    Args:
        store: weights and state.
        kernel: FBGEMM's or Triton's update; None for torch's.
    """

    def __init__(self, store: GroupStore, *, kernel: FbgemmUpdate | TritonUpdate | None) -> None:
        self.store = store
        self.learning_rate = 0.0 if store.optimizer is None else store.optimizer.learning_rate
        self.is_deferring = False
        self._kernel = kernel
        self._collected: list[Part] = []

    @property
    def has_collected(self) -> bool:
        """Return whether gradients wait for the next update."""
        return bool(self._collected)

    @property
    def backend(self) -> str:
        """Return who updates the rows: fbgemm, triton or torch."""
        names = {FbgemmUpdate: "fbgemm", TritonUpdate: "triton"}
        return names.get(type(self._kernel), "torch")

    def add(self, parts: Sequence[Part]) -> None:
        """Apply, or collect, the parts of one backward pass."""
        if self.store.optimizer is None or not parts:
            return
        if self.is_deferring or self._collected:
            self._collected.extend(parts)
            if not self.is_deferring:
                parts, self._collected = self._collected, []
                self._apply(parts)
            return
        self._apply(parts)

    def _apply(self, parts: Sequence[Part]) -> None:
        store = self.store
        assert store.optimizer is not None
        store.step += 1
        (first, *others) = parts
        if not others and self._apply_kernel(first):
            return
        touched = merge([p.lookups for p in parts]) if others else first.lookups.touched
        grad = torch.cat([p.grad for p in parts]) if others else first.grad
        optimizer = store.optimizer
        formula = Formula(optimizer=optimizer, learning_rate=self.learning_rate, step=store.step)
        update = update_all if optimizer.rows == "all" else update_touched
        update(store.weight, store.state, touched, grad, formula, store.rounding)

    def _apply_kernel(self, part: Part) -> bool:
        """Update by the kernel; return whether there is one that can."""
        kernel, lookups = self._kernel, part.lookups
        if isinstance(kernel, TritonUpdate):
            kernel.apply(self.store, lookups, part.grad, self.learning_rate)
            return True
        # FBGEMM takes no absent rows.
        if kernel is None or lookups.may_be_absent or not isinstance(lookups, Lookups):
            return False
        kernel.apply(self.store, lookups, part.grad, self.learning_rate)
        return True


def merge(parts: Sequence[AnyLookups]) -> Touched:
    """Return all lookups grouped by row, for the gradients of all parts one after the other."""
    rows, sources, scales, first = [], [], [], 0
    is_scaled = any(part.scales is not None for part in parts)
    for part in parts:
        num, own = part.rows.numel(), part.sources
        if own is None:
            own = torch.arange(num, dtype=part.rows.dtype, device=part.rows.device)
        rows.append(part.rows)
        sources.append(own + first)
        if is_scaled:
            scale = part.scales
            one = torch.ones(num, device=own.device)
            scales.append(one if scale is None else scale.detach())
        first += part.num_outputs
    joined = torch.cat(rows)
    all_sources = torch.cat(sources)
    all_scales = torch.cat(scales) if is_scaled else None
    if any(part.may_be_absent for part in parts):
        keep = joined >= 0
        joined, all_sources = joined[keep], all_sources[keep]
        all_scales = None if all_scales is None else all_scales[keep]
    return group_by_row(joined, all_sources.to(joined.dtype), all_scales)
