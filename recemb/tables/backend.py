"""Which backend serves which tables, and why."""

from typing import Literal, get_args

import torch

from recemb.tables.fbgemm import FbgemmUpdate, why_not
from recemb.tables.store import GroupStore

Backend = Literal["auto", "torch", "fbgemm"]


def check_backend(backend: Backend, owner: str) -> None:
    """Check the word.

    Raises:
        ValueError: if it is unknown.
    """
    if backend not in get_args(Backend):
        raise ValueError(
            f"{owner}: backend must be one of {', '.join(get_args(Backend))}, got '{backend}'"
        )


def update_kernel(store: GroupStore, backend: Backend, device: torch.device) -> FbgemmUpdate | None:
    """Return what updates the rows of `store`: FBGEMM, or None for torch.

    Raises:
        ValueError: if `backend` is "fbgemm" and it cannot serve, with the reason.
    """
    if backend == "torch":
        return None
    reason = why_not(store.group, store.optimizer, device)
    if reason is None:
        return FbgemmUpdate(store)
    if backend == "fbgemm":
        raise ValueError(
            f"backend='fbgemm' cannot serve tables of width {store.group.width}: {reason}; "
            "backend='auto' uses FBGEMM where it can and torch elsewhere"
        )
    return None
