"""The ids of one unit, and the update of its groups.

Shapes: `B` examples, `F` lookups, `N` ids, `D` embedding_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.bags import Bags, select_bags
from recemb.tables.bounds import BoundsCheck
from recemb.tables.fbgemm import FbgemmUpdate
from recemb.tables.formula import Formula
from recemb.tables.layout import Unit
from recemb.tables.lookup import Lookups
from recemb.tables.store import GroupStore
from recemb.tables.update import Touched, group_by_row, update_all, update_touched

_INT32_ROWS = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """The gradient of a group's vectors, as columns of a larger one.

    Attributes:
        values: (B, W), or (N, D) with one run over all columns.
        runs: the group's runs of columns (first, number).
        width: D.
    """

    values: Tensor
    runs: tuple[tuple[int, int], ...]
    width: int

    def rows(self) -> Tensor:
        """Return one row for each output row of the lookups, (B*F, D) float32, contiguous."""
        parts = [self.values.narrow(1, first, num) for first, num in self.runs]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return joined.float().contiguous().view(-1, self.width)

    def columns(self) -> Tensor:
        """Return the vectors' gradients side by side, float32, contiguous.

        They are all of (B, F*D), or, not to copy them, a part of (B, W) if they are one run.
        """
        if len(self.runs) == 1:
            return self.values.float().contiguous()
        return self.rows().view(self.values.shape[0], -1)


class UnitLookup(nn.Module):
    """Prepares the ids of a batch for the unit's groups, and updates these.

    Attributes:
        unit: the lookups.
        stores: the groups' memory.
        learning_rate: of the next update.
        is_deferring: whether gradients are collected instead of applied.

    Args:
        unit: the lookups.
        stores: the memory of each of the unit's groups.
        kernels: for each group FBGEMM's update, or None for torch's.
        bounds: what happens to ids out of range.
        device: where ids come from.
    """

    first_rows: Tensor
    limits: Tensor
    is_mean: Tensor | None

    def __init__(
        self,
        unit: Unit,
        stores: Sequence[GroupStore],
        *,
        kernels: Sequence[FbgemmUpdate | None],
        bounds: BoundsCheck,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.unit = unit
        # In a tuple, so that the stores are registered once, with their owner.
        self.stores = tuple(stores)
        self._kernels = tuple(kernels)
        self._bounds = bounds
        optimizer = stores[0].optimizer
        self.learning_rate = 0.0 if optimizer is None else optimizer.learning_rate
        self.is_deferring = False
        self._collected: list[tuple[Lookups, tuple[Tensor | None, ...]]] = []
        slots = unit.slots[0]
        num_rows = max(store.group.num_rows for store in stores)
        dtype = torch.int32 if num_rows < _INT32_ROWS else torch.int64
        means = [slot.table.pooling == "mean" for slot in slots]
        is_mean = torch.tensor(means, device=device) if any(means) else None
        first_rows = torch.tensor([s.first_row for s in slots], dtype=dtype, device=device)
        limits = torch.tensor([s.table.num_embeddings for s in slots], device=device)
        self.register_buffer("first_rows", first_rows, persistent=False)
        self.register_buffer("limits", limits, persistent=False)
        self.register_buffer("is_mean", is_mean, persistent=False)

    @property
    def has_collected(self) -> bool:
        """Return whether gradients wait for the next update."""
        return bool(self._collected)

    def ids(self, features: KeyedJaggedTensor, *, one_hot: bool) -> tuple[Bags, Tensor]:
        """Return the bags of the unit's features, and their ids (N,), all in range."""
        bags = select_bags(features, self.unit.features, one_hot=one_hot)
        return bags, self._bounds.apply(bags, self.unit.slots[0], self.limits)

    def update(self, lookups: Lookups, grads: Sequence[Gradient | None]) -> None:
        """Apply, or collect, the gradients of one backward pass, one for each group."""
        if not self.training:
            raise RuntimeError(
                "tables are in eval mode, but a backward pass reached them; call train() before "
                "training, or look up under torch.no_grad() to evaluate"
            )
        if self.is_deferring or self._collected:
            self._collected.append((lookups, tuple(None if g is None else g.rows() for g in grads)))
            if not self.is_deferring:
                self._update_from_collected()
            return
        for store, kernel, grad in zip(self.stores, self._kernels, grads, strict=True):
            if grad is None:
                continue
            if kernel is None:
                self._update_store(store, lookups.touched, grad.rows())
            else:
                kernel.apply(store, lookups, grad.columns(), self.learning_rate)

    def _update_from_collected(self) -> None:
        parts, self._collected = self._collected, []
        touched = _merge_touched([lookups for lookups, _ in parts])
        for index, store in enumerate(self.stores):
            grad = _merge_grads(parts, index)
            if grad is not None:
                self._update_store(store, touched, grad)

    def _update_store(self, store: GroupStore, touched: Touched, grad: Tensor) -> None:
        optimizer = store.optimizer
        assert optimizer is not None
        store.step += 1
        formula = Formula(optimizer=optimizer, learning_rate=self.learning_rate, step=store.step)
        update = update_all if optimizer.rows == "all" else update_touched
        update(store.weight, store.state, touched, grad, formula)


def _merge_touched(parts: Sequence[Lookups]) -> Touched:
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
            scales.append(torch.ones(num, device=own.device) if scale is None else scale)
        first += part.num_outputs
    return group_by_row(
        torch.cat(rows), torch.cat(sources), torch.cat(scales) if is_scaled else None
    )


def _merge_grads(
    parts: Sequence[tuple[Lookups, tuple[Tensor | None, ...]]], index: int
) -> Tensor | None:
    """Return the gradients of one group, one part after the other; None if no part has one."""
    grads = [grads[index] for _, grads in parts]
    present = [g for g in grads if g is not None]
    if not present:
        return None
    return torch.cat(
        [
            present[0].new_zeros(lookups.num_outputs, present[0].shape[1]) if g is None else g
            for (lookups, _), g in zip(parts, grads, strict=True)
        ]
    )
