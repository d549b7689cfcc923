"""The lookups of one unit: features that address one or several groups in the same way.

Shapes: `B` examples, `F` lookups, `N` ids, `D` embedding_dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.bags import Bags, select_bags
from recemb.tables.bounds import BoundsCheck
from recemb.tables.formula import Formula
from recemb.tables.layout import Unit
from recemb.tables.lookup import FusedLookup, Lookups, address, shift
from recemb.tables.store import GroupStore
from recemb.tables.update import Touched, group_by_row, update_all, update_touched

INT32_ROWS = 2**31 - 1


class UnitLookup(nn.Module):
    """Looks a batch's ids up in the unit's groups, and updates them in the backward pass.

    Attributes:
        unit: the lookups.
        learning_rate: of the next update.
        is_deferring: whether gradients are collected instead of applied.
    """

    first_rows: Tensor
    limits: Tensor
    is_mean: Tensor | None

    def __init__(
        self, unit: Unit, stores: Sequence[GroupStore], *, bounds: BoundsCheck, device: torch.device
    ) -> None:
        super().__init__()
        self.unit = unit
        # In a tuple, so that the stores are registered once, with their owner.
        self._stores = tuple(stores)
        self._bounds = bounds
        optimizer = stores[0].optimizer
        self.learning_rate = 0.0 if optimizer is None else optimizer.learning_rate
        self.is_deferring = False
        self._collected: list[tuple[Lookups, tuple[Tensor | None, ...]]] = []
        slots = unit.slots[0]
        num_rows = max(store.group.num_rows for store in stores)
        dtype = torch.int32 if num_rows < INT32_ROWS else torch.int64
        first_rows = torch.tensor([s.first_row for s in slots], dtype=dtype, device=device)
        limits = torch.tensor([s.table.num_embeddings for s in slots], device=device)
        is_mean = torch.tensor([s.table.pooling == "mean" for s in slots], device=device)
        has_mean = any(s.table.pooling == "mean" for s in slots)
        self.register_buffer("first_rows", first_rows, persistent=False)
        self.register_buffer("limits", limits, persistent=False)
        self.register_buffer("is_mean", is_mean if has_mean else None, persistent=False)

    @property
    def has_collected(self) -> bool:
        """Return whether gradients wait for the next update."""
        return bool(self._collected)

    def pooled(self, features: KeyedJaggedTensor, *, one_hot: bool) -> tuple[Tensor, ...]:
        """Return the vectors (B, F*D) for each group of the unit."""
        bags, ids = self._ids(features, one_hot)
        lookups = address(bags, ids, self.first_rows, self.is_mean)
        return tuple(out.view(bags.batch_size, -1) for out in self._look_up(lookups))

    def unpooled(
        self, features: KeyedJaggedTensor, *, one_hot: bool
    ) -> tuple[Bags, tuple[Tensor, ...]]:
        """Return the bags, and the vectors (N, D) of their ids for each group of the unit."""
        bags, ids = self._ids(features, one_hot)
        rows = shift(ids, self.first_rows, bags.sizes)
        lookups = Lookups(
            rows=rows,
            offsets=None,
            lengths=None,
            scales=None,
            num_features=len(bags.sizes),
            num_outputs=rows.numel(),
        )
        return bags, self._look_up(lookups)

    def update(self, lookups: Lookups, grads: Sequence[Tensor | None]) -> None:
        """Apply, or collect, the gradients of one backward pass; the counterpart of FusedLookup."""
        if not self.training:
            raise RuntimeError(
                "tables are in eval mode, but a backward pass reached them; call train() before "
                "training, or look up under torch.no_grad() to evaluate"
            )
        flat = tuple(None if g is None else g.float().contiguous() for g in grads)
        if self.is_deferring:
            self._collected.append((lookups, flat))
            return
        touched = lookups.touched
        if self._collected:
            parts = [*self._collected, (lookups, flat)]
            touched = _merge_touched([part for part, _ in parts])
            flat = tuple(_merge_grads(parts, g) for g in range(len(flat)))
            self._collected.clear()
        for store, grad in zip(self._stores, flat, strict=True):
            if grad is not None:
                self._update_store(store, touched, grad)

    def _update_store(self, store: GroupStore, touched: Touched, grad: Tensor) -> None:
        optimizer = store.optimizer
        assert optimizer is not None
        store.step += 1
        formula = Formula(optimizer=optimizer, learning_rate=self.learning_rate, step=store.step)
        update = update_all if optimizer.rows == "all" else update_touched
        update(store.weight, store.state, touched, grad, formula)

    def _ids(self, features: KeyedJaggedTensor, one_hot: bool) -> tuple[Bags, Tensor]:
        bags = select_bags(features, self.unit.features, one_hot=one_hot)
        return bags, self._bounds.apply(bags, self.unit.slots[0], self.limits)

    def _look_up(self, lookups: Lookups) -> tuple[Tensor, ...]:
        weights = tuple(store.weight for store in self._stores)
        if self._stores[0].optimizer is None or not torch.is_grad_enabled():
            return tuple(lookups.gather(w) for w in weights)
        if lookups.scales is not None and lookups.scales.requires_grad:
            raise ValueError(
                "tables: the features' weights require grad, which tables that update themselves "
                "do not compute; detach the weights, or build the tables with optimizer=None"
            )
        anchor = torch.zeros((), requires_grad=True)
        outputs: tuple[Tensor, ...] = FusedLookup.apply(  # type: ignore[no-untyped-call]
            anchor, self, lookups, *weights
        )
        return outputs


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
