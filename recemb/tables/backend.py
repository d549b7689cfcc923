"""Which backend serves which tables, and why.

"auto" takes, buffer by buffer (`recemb doctor` prints what that means on a machine):

- on a CUDA device: triton; torch where triton cannot serve
- on a CPU: fbgemm for float32 tables of widths that are multiples of 4, updated by SGD, Adagrad or
  row-wise Adagrad without weight decay; torch for everything else
- without an optimizer of the tables' own: torch, by autograd
"""

from typing import Literal, get_args

import torch

from recemb.tables import fbgemm, triton
from recemb.tables.fbgemm import FbgemmUpdate
from recemb.tables.store import GroupStore
from recemb.tables.triton import TritonUpdate

Backend = Literal["auto", "torch", "fbgemm", "triton"]


def check_backend(backend: Backend, owner: str) -> None:
    """Check the word.

    Raises:
        ValueError: if it is unknown.
    """
    if backend not in get_args(Backend):
        raise ValueError(
            f"{owner}: backend must be one of {', '.join(get_args(Backend))}, got '{backend}'"
        )


def update_kernel(
    store: GroupStore, backend: Backend, device: torch.device
) -> FbgemmUpdate | TritonUpdate | None:
    """Return what updates the rows of `store`; None for torch.

    Raises:
        ValueError: if `backend` is "fbgemm" or "triton" and it cannot serve, with the reason.
    """
    if backend == "torch" or not store.group.is_trained:
        return None
    reasons = {}
    # Under the interpreter Triton serves a CPU too, but only who asks for it gets it.
    if backend == "triton" or (backend == "auto" and device.type == "cuda"):
        reasons["triton"] = triton.why_not(store.group, store.optimizer, device)
        if reasons["triton"] is None:
            return TritonUpdate(store)
    if backend in ("auto", "fbgemm"):
        reasons["fbgemm"] = fbgemm.why_not(store.group, store.optimizer, device)
        if reasons["fbgemm"] is None:
            return FbgemmUpdate(store)
    if backend == "auto":
        return None
    raise ValueError(
        f"backend='{backend}' cannot serve tables of width {store.group.width}: "
        f"{reasons[backend]}; backend='auto' chooses one that can"
    )
