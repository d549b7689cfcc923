"""The update of touched rows by FBGEMM's CPU kernels, on the same buffers as the torch backend.

Only the backward kernels are called: the forward pass is the torch backend's, which is as fast, and
weights and state stay where they are, so that both backends read and write one layout.

Shapes: `N` ids, `D` embedding_dim.
"""

from typing import Any

import torch
from torch import Tensor

from recemb.tables.fbgemm_ops import FLOAT32, SUM_POOLING, UPDATES, is_available, update_operator
from recemb.tables.layout import Group
from recemb.tables.lookup import Lookups
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.store import GroupStore


def why_not(group: Group, optimizer: TableOptimizer | None, device: torch.device) -> str | None:
    """Return why FBGEMM cannot update `group` exactly, or None if it can.

    Its silence on weight decay was found by experiment (fbgemm_gpu-cpu 1.8.0).
    """
    if optimizer is None:
        return "it only serves tables that update themselves; pass an optimizer"
    reasons = {
        f"its kernels here run on the CPU, not on {device.type}": device.type
        not in ("cpu", "meta"),
        f"its CPU kernels are {', '.join(UPDATES)}, not {optimizer.kind}": optimizer.kind
        not in UPDATES,
        "its CPU kernels ignore weight_decay": optimizer.weight_decay > 0,
        "it updates touched rows only, not rows='all'": optimizer.rows == "all",
        f"widths must be multiples of 4, not {group.width}": group.width % 4 != 0,
        f"its CPU kernels round {group.dtype} to nearest, which loses small updates": group.dtype
        != "float32",
    }
    for reason, holds in reasons.items():
        if holds:
            return reason
    if not is_available():
        return "fbgemm_gpu is not installed, or lacks the kernels; see `recemb doctor`"
    return None


class FbgemmUpdate:
    """Calls the kernel of the store's optimizer.

    FBGEMM updates a table of one feature by parallel code, and one that several features share by a
    serial, scalar loop. So it is told that the whole buffer is one table, and that all lookups are
    bags of a single feature. Only bags that share no row with another lookup's are handed over
    lookup by lookup: then the gradient need not be transposed, and the ids of one lookup are sorted
    at a time. To FBGEMM each of these has a table that begins where the buffer does.

    Args:
        store: weights and state; `why_not` is None for them.
    """

    def __init__(self, store: GroupStore) -> None:
        assert store.optimizer is not None
        self._optimizer = store.optimizer
        self._width = store.group.width
        self._num_rows = store.group.num_rows
        self._kernel: Any = update_operator(store.optimizer.kind)

    def apply(
        self, store: GroupStore, lookups: Lookups, grad: Tensor, learning_rate: float
    ) -> None:
        """Update the rows that `lookups` touched, in place; duplicates are summed first.

        Args:
            store: weights and state.
            lookups: of one batch, none of them absent.
            grad: (num_outputs, D) float32, contiguous.
            learning_rate: of this step.

        Raises:
            RuntimeError: if the tables are not on the CPU any more.
        """
        if not store.weight.is_cpu:
            raise RuntimeError(
                f"FBGEMM updates tables on the CPU, but these were moved to {store.weight.device}; "
                "build them there with device=..., or choose backend='torch'"
            )
        offsets, num = lookups.offsets, 1
        if offsets is None:
            offsets = torch.arange(lookups.rows.numel() + 1)
        elif lookups.are_disjoint:
            num = lookups.num_slots
            grad = grad.view(-1, num * self._width)
        else:
            by_example = grad.view(-1, lookups.num_slots, self._width)
            grad = by_example.transpose(0, 1).reshape(-1, self._width)
        zeros, placements = torch.zeros(num, dtype=torch.int64), torch.zeros(num, dtype=torch.int32)
        bounds = torch.arange(num + 1)
        state: list[Any] = []
        if self._optimizer.kind != "sgd":
            state = [store.state["sum"].view(-1), placements, zeros]
        settings = [] if self._optimizer.kind == "sgd" else [self._optimizer.eps]
        self._kernel(
            grad,
            store.weight.view(-1),
            placements,
            zeros,
            (bounds * self._width).int(),
            self._width,
            bounds * self._num_rows,
            (num * self._num_rows).bit_length(),
            lookups.rows.long(),
            offsets.long(),
            SUM_POOLING,
            None if lookups.scales is None else lookups.scales.detach(),
            False,
            *state,
            torch.tensor(learning_rate),
            *settings,
            output_dtype=FLOAT32,
        )
