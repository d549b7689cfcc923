"""The Triton backend: recemb.kernels' pooled lookup, with hashing in the kernel, and row update.

On a CUDA device these are the kernels' public ops. On a CPU they run only under Triton's
interpreter (TRITON_INTERPRET=1), which is for tests.

Shapes: `S` lookups, `F` features, `B` examples, `N` ids, `M` lookups of all slots, `D` width.
"""

import importlib.util
import os
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from recemb.kernels.bag import bag_forward, bag_rows
from recemb.kernels.bag_update import UpdatePlan, plan_update, update_rows
from recemb.kernels.bag_weight_gradient import bag_weight_gradient
from recemb.tables.bags import Bags
from recemb.tables.formula import Formula
from recemb.tables.layout import Group
from recemb.tables.lookup import Lookups
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.store import GroupStore
from recemb.tables.update import Touched, group_by_row


def why_not(group: Group, optimizer: TableOptimizer | None, device: torch.device) -> str | None:
    """Return why the Triton kernels cannot serve `group`, or None if they can."""
    if optimizer is None:
        return "it only serves tables that update themselves; pass an optimizer"
    if optimizer.rows == "all":
        return "it updates touched rows only, not rows='all'"
    if "int" in group.dtype:
        return f"tables of {group.dtype} are read and trained by the torch backend alone"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; see `recemb doctor`"
    if device.type == "cuda" or is_interpreted():
        return None
    return f"its kernels run on CUDA devices, not on {device.type}"


def is_interpreted() -> bool:
    """Return whether Triton interprets its kernels, on any device."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


class KernelLookups:
    """The lookups of a batch whose rows the kernels compute; the attributes are those of Lookups.

    Args:
        bags: the bags, feature by feature.
        ids: (N,) what the bags' values became after the bounds check.
        slots: (5, S), from `recemb.kernels.bag.pack_slots`.
        sources: which feature each of the S lookups reads.
        has_mean: whether any lookup pools by the mean.
    """

    sizes: tuple[int, ...] | None = None
    may_be_absent = False
    are_disjoint = False

    def __init__(
        self,
        bags: Bags,
        ids: Tensor,
        slots: Tensor,
        *,
        sources: tuple[int, ...],
        has_mean: bool,
    ) -> None:
        self._bags = bags
        self._ids = ids
        self._slots = slots
        self._num_lookups = sum(bags.sizes[f] for f in sources)
        self._is_scaled = has_mean or bags.weights is not None
        self._weights = None if bags.weights is None else bags.weights.float()
        self.num_slots = slots.shape[1]
        self.num_outputs = bags.batch_size * self.num_slots

    @property
    def differentiable(self) -> Tensor | None:
        """Return the ids' weights (N,), for which `scale_gradient` gives gradients."""
        return self._weights

    def gather(self, weight: Tensor) -> Tensor:
        """Return float32 vectors of `weight` (R, D), pooled (B*S, D), row b*S + s."""
        bags = self._bags
        weights = None if self._weights is None else self._weights.detach()
        arguments = (weight, self._ids, bags.offsets, weights, self._slots)
        if weight.is_cuda:
            vectors = bag_forward(*arguments, batch_size=bags.batch_size)
        else:
            from recemb.kernels.bag import launch

            vectors = launch.bag_forward(*arguments, batch_size=bags.batch_size)
        return vectors.view(self.num_outputs, weight.shape[1])

    def scale_gradient(self, weight: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient (N,) of the ids' weights, from rows before any update.

        Args:
            weight: (R, D).
            grad: (B*S, D).
        """
        bags = self._bags
        grad = grad.view(bags.batch_size, -1 if grad.numel() else grad.shape[1])
        arguments = (weight, self._ids, bags.offsets, self._slots, grad)
        if weight.is_cuda:
            return bag_weight_gradient(*arguments, batch_size=bags.batch_size)
        from recemb.kernels.bag_weight_gradient import kernel

        found: Tensor = kernel.bag_weight_gradient(
            *arguments, batch_size=bags.batch_size, policy="trust"
        )
        return found

    @property
    def rows(self) -> Tensor:
        """Return the rows (M,), lookup by lookup."""
        return self._lookups[0]

    @property
    def sources(self) -> Tensor:
        """Return the output row (b*S + s) of each lookup (M,)."""
        return self._lookups[1]

    @property
    def scales(self) -> Tensor | None:
        """Return what each lookup's row is multiplied by, (M,), or None for 1."""
        return self._lookups[2]

    @cached_property
    def touched(self) -> Touched:
        """Return the lookups grouped by row."""
        return group_by_row(self.rows, self.sources.to(self.rows.dtype), self.scales)

    @cached_property
    def _lookups(self) -> tuple[Tensor, Tensor, Tensor | None]:
        bags = self._bags
        weights = None if self._weights is None else self._weights.detach()
        named: dict[str, Any] = {
            "batch_size": bags.batch_size,
            "policy": "trust",
            "sentinel": int(_FAR_ROW),
            "num_lookups": self._num_lookups,
            "scale_dtype": torch.float32 if self._is_scaled else None,
        }
        if self._ids.is_cuda:
            return bag_rows(self._ids, bags.offsets, self._slots, weights=weights, **named)
        from recemb.kernels.bag import launch

        return launch.bag_rows(self._ids, bags.offsets, weights, self._slots, **named)


_FAR_ROW = 2**31 - 2
"""The row of no lookup: beyond every buffer whose rows fit 32 bits."""


class TritonUpdate:
    """Updates the rows of a store by the kernels.

    Args:
        store: weights and state; `why_not` is None for them.
    """

    def __init__(self, store: GroupStore) -> None:
        assert store.optimizer is not None
        self._optimizer = store.optimizer

    def apply(
        self,
        store: GroupStore,
        lookups: "Lookups | KernelLookups",
        grad: Tensor,
        learning_rate: float,
    ) -> None:
        """Update the rows that `lookups` touched, in place; duplicates are summed first.

        Args:
            store: weights and state; its step is that of this update.
            lookups: of one batch.
            grad: (num_outputs, D) float32, contiguous.
            learning_rate: of this step.
        """
        o = self._optimizer
        formula = Formula(optimizer=o, learning_rate=learning_rate, step=store.step)
        hyper = torch.tensor(
            [
                learning_rate,
                o.eps,
                o.beta1,
                o.beta2,
                o.weight_decay,
                *formula.corrections,
                0.0,
            ],
            dtype=torch.float64,
        ).to(grad.device, non_blocking=True)
        scales = None if lookups.scales is None else lookups.scales.detach()
        rounding = store.rounding
        named: dict[str, Any] = {
            "optimizer": o.kind,
            "weight_decay_mode": o.weight_decay_mode if o.weight_decay > 0 else "none",
            "rounding_seed": None if rounding is None else rounding.seed,
        }
        plan = plan_update(lookups.rows, store.group.num_rows)
        state = list(store.state.values())
        if grad.is_cuda:
            update_rows(
                store.weight,
                state,
                grad,
                lookups.rows,
                lookups.sources,
                scales,
                hyper,
                plan=plan,
                **named,
            )
        else:
            _interpret(store, state, grad, plan, lookups.sources, scales, hyper, named)


def _interpret(
    store: GroupStore,
    state: list[Tensor],
    grad: Tensor,
    plan: UpdatePlan,
    sources: Tensor | None,
    scales: Tensor | None,
    hyper: Tensor,
    named: dict[str, Any],
) -> None:
    from recemb.kernels.bag_update import launch

    its = launch.Lookups(grad, plan.sorted_rows, plan.permutation, sources, scales)
    launch.update_rows(store.weight, state, its, hyper, **named)
