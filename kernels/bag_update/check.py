"""What may be passed to the ops of this package.

Shapes: `R` rows of the table, `D` its width, `M` lookups, `G` rows of the gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from recemb.kernels.bag_update.reference import ROWWISE_STATE, WEIGHT_DECAY_MODES

MAX_WIDTH = 4096
"""Largest D; a program of the kernels holds whole rows."""

MAX_LOOKUPS = 2**31 - 1
"""Largest M."""

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int32, torch.int64)


def check_table(
    weight: Tensor, state: Sequence[Tensor], hyper: Tensor, optimizer: str, weight_decay_mode: str
) -> None:
    """Check what `update_rows` updates, and how.

    Raises:
        ValueError: if a word is unknown or a tensor does not fit.
    """
    owner = "update_rows"
    for name, word, known in (
        ("optimizer", optimizer, tuple(ROWWISE_STATE)),
        ("weight_decay_mode", weight_decay_mode, WEIGHT_DECAY_MODES),
    ):
        if word not in known:
            raise ValueError(f"{owner}: {name} must be one of {', '.join(known)}, got '{word}'")
    _check_tensor(owner, "weight", weight, 2, _floats_on(weight.device))
    if weight.requires_grad:
        raise ValueError(
            f"{owner}: weight is updated in place and must not require grad, but it does; pass a "
            "buffer or weight.detach()"
        )
    _check_width(owner, "weight", weight)
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    shapes = [
        weight.shape[:1] if is_rowwise else weight.shape for is_rowwise in ROWWISE_STATE[optimizer]
    ]
    if [part.shape for part in state] != shapes:
        raise ValueError(
            f"{owner}: the state of {optimizer} must have the shapes "
            f"{[tuple(s) for s in shapes]} for a weight {tuple(weight.shape)}, got "
            f"{[tuple(part.shape) for part in state]}"
        )
    for i, part in enumerate(state):
        _check_tensor(owner, f"state[{i}]", part, len(shapes[i]), (wide,), weight.device)
    _check_tensor(owner, "hyper", hyper, 1, (torch.float32, torch.float64), weight.device)
    if hyper.shape != (8,):
        raise ValueError(
            f"{owner}: hyper must hold 8 numbers (lr, eps, beta1, beta2, weight decay, bias "
            f"correction 1 and 2, one unused), got {tuple(hyper.shape)}"
        )


def check_lookups(
    owner: str,
    rows: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    *,
    grad: Tensor | None = None,
    width: int | None = None,
) -> None:
    """Check the lookups (M,) and the gradient (G, D); `owner` is the function, for messages.

    Raises:
        ValueError: if a tensor does not fit.
    """
    _check_tensor(owner, "rows", rows, 1, _INTEGERS)
    if rows.numel() > MAX_LOOKUPS:
        raise ValueError(
            f"{owner}: at most {MAX_LOOKUPS} lookups, got {rows.numel()}; split the batch"
        )
    for name, part, types in (
        ("sources", sources, _INTEGERS),
        ("scales", scales, (torch.float32, torch.float64)),
    ):
        if part is None:
            continue
        _check_tensor(owner, name, part, 1, types, rows.device)
        _check_length(owner, name, part, rows)
    if grad is None:
        return
    _check_tensor(owner, "grad", grad, 2, _floats_on(rows.device), rows.device)
    _check_width(owner, "grad", grad)
    if width is not None and grad.shape[1] != width:
        raise ValueError(
            f"{owner}: grad must be as wide as weight, {width}, got {tuple(grad.shape)}"
        )
    if sources is None and grad.shape[0] < rows.numel():
        raise ValueError(
            f"{owner}: without sources, grad needs a row for each of {rows.numel()} lookups, got "
            f"{grad.shape[0]}; pass sources"
        )


def check_plan(rows: Tensor, sorted_rows: Tensor, permutation: Tensor) -> None:
    """Check that a plan has the length of `rows` (M,).

    Raises:
        ValueError: if it has not.
    """
    _check_length("plan", "sorted_rows", sorted_rows, rows)
    _check_length("plan", "permutation", permutation, rows)


def _floats_on(device: torch.device) -> tuple[torch.dtype, ...]:
    """Return the types of weight and gradient: the kernels know no float64, the reference does."""
    return (*_FLOATS, torch.float64) if device.type == "cpu" else _FLOATS


def _check_length(owner: str, name: str, part: Tensor, rows: Tensor) -> None:
    if part.shape != rows.shape:
        raise ValueError(
            f"{owner}: {name} must have one entry per lookup, {tuple(rows.shape)}, got "
            f"{tuple(part.shape)}"
        )


def _check_width(owner: str, name: str, tensor: Tensor) -> None:
    if not 1 <= tensor.shape[1] <= MAX_WIDTH:
        raise ValueError(
            f"{owner}: {name} must be 1 to {MAX_WIDTH} wide, got {tensor.shape[1]}; cut the table "
            "into column blocks"
        )


def _check_tensor(
    owner: str,
    name: str,
    tensor: Tensor,
    num_dims: int,
    types: tuple[torch.dtype, ...],
    device: torch.device | None = None,
) -> None:
    if tensor.dim() != num_dims:
        raise ValueError(
            f"{owner}: {name} must have {num_dims} dimensions, got {tuple(tensor.shape)}"
        )
    if tensor.dtype not in types:
        names = ", ".join(str(t).removeprefix("torch.") for t in types)
        raise ValueError(
            f"{owner}: {name} must be {names}, got {str(tensor.dtype).removeprefix('torch.')}; "
            "convert it"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{owner}: {name} must be contiguous; call .contiguous() first")
    if device is not None and tensor.device != device:
        raise ValueError(f"{owner}: {name} must be on {device}, got {tensor.device}; move it there")
