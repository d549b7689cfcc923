"""FBGEMM's operators: loaded when first asked for, and only if they are installed.

Shapes: `N` rows, `G` bags, `R` rows of the buffer, `D` its width.
"""

import functools
import importlib
import warnings
from typing import Any

import torch
from torch import Tensor

SUM_POOLING = 0
FLOAT32 = 0
UPDATES = {
    "sgd": "split_embedding_backward_codegen_sgd_cpu",
    "adagrad": "split_embedding_backward_codegen_adagrad_cpu",
    "rowwise_adagrad": "split_embedding_backward_codegen_rowwise_adagrad_cpu",
}
_FORWARD = "split_embedding_codegen_forward_cpu"


@functools.cache
def is_available() -> bool:
    """Return whether FBGEMM's CPU operators are there, importing it if needed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("fbgemm_gpu")
            importlib.import_module("fbgemm_gpu.split_embedding_codegen_lookup_invokers")
    except (ImportError, OSError):
        return False
    return all(hasattr(torch.ops.fbgemm, name) for name in (*UPDATES.values(), _FORWARD))


def update_operator(kind: str) -> Any:
    """Return the operator that updates rows by the optimizer `kind`."""
    return getattr(torch.ops.fbgemm, UPDATES[kind])


def gather_half(buffer: Tensor, rows: Tensor, offsets: Tensor, scales: Tensor | None) -> Tensor:
    """Return the sum (G, D), made and returned in float32, of each bag's rows.

    Args:
        buffer: (R, D) float16, on the CPU, contiguous.
        rows: (N,).
        offsets: (G+1,) where each bag begins.
        scales: (N,) float32, or None for 1.
    """
    num_rows, width = buffer.shape
    vectors: Tensor = getattr(torch.ops.fbgemm, _FORWARD)(
        buffer.view(-1),
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([0, width], dtype=torch.int32),
        width,
        torch.tensor([0, num_rows]),
        rows.long(),
        offsets.long(),
        SUM_POOLING,
        scales,
        FLOAT32,
    )
    return vectors
