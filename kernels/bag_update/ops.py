"""The torch.library ops: on the CPU the reference, on a GPU the Triton kernels.

They take lookups in the order of `plan_update`, so that the sort can be done elsewhere. None has a
gradient: they run in a backward pass.

Shapes: `R` rows of the table, `D` its width, `M` lookups, `G` rows of the gradient.
"""

import torch
from torch import Tensor

from recemb.kernels.bag_update import reference


@torch.library.custom_op("recemb::plan_update", mutates_args=())
def plan_update(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return rows (M,) in ascending order and the lookup that each came from, on any device."""
    return reference.plan_update(rows, num_rows)


@plan_update.register_fake
def _(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    is_narrow = rows.dtype == torch.int32 or num_rows <= reference.MAX_NARROW_ROWS
    dtype = torch.int32 if is_narrow else torch.int64
    return rows.new_empty(rows.shape, dtype=dtype), rows.new_empty(rows.shape, dtype=torch.int64)


@torch.library.custom_op(
    "recemb::update_rows", mutates_args=("weight", "state"), device_types="cpu"
)
def update_rows(
    weight: Tensor,
    state: list[Tensor],
    grad: Tensor,
    sorted_rows: Tensor,
    permutation: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    hyper: Tensor,
    optimizer: str,
    weight_decay_mode: str,
    rounding_seed: int | None,
) -> None:
    """Update the touched rows of `weight` (R, D) and `state` in place."""
    reference.update_rows(
        weight,
        state,
        grad,
        reference.find_runs(sorted_rows, permutation, sources, scales, weight.shape[0]),
        hyper,
        optimizer=optimizer,
        weight_decay_mode=weight_decay_mode,
        rounding_seed=rounding_seed,
    )


@update_rows.register_kernel("cuda")
def _(
    weight: Tensor,
    state: list[Tensor],
    grad: Tensor,
    sorted_rows: Tensor,
    permutation: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    hyper: Tensor,
    optimizer: str,
    weight_decay_mode: str,
    rounding_seed: int | None,
) -> None:
    from recemb.kernels.bag_update import launch

    launch.update_rows(
        weight,
        state,
        launch.Lookups(grad, sorted_rows, permutation, sources, scales),
        hyper,
        optimizer=optimizer,
        weight_decay_mode=weight_decay_mode,
        rounding_seed=rounding_seed,
    )


@update_rows.register_fake
def _(*arguments: object) -> None:
    return None


@torch.library.custom_op("recemb::segment_sum", mutates_args=(), device_types="cpu")
def segment_sum(
    grad: Tensor,
    sorted_rows: Tensor,
    permutation: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    num_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return distinct rows (M,), their summed gradients (M, D) and how many there are."""
    runs = reference.find_runs(sorted_rows, permutation, sources, scales, num_rows)
    return reference.segment_sum(grad, runs, permutation.numel(), num_rows, sorted_rows.dtype)


@segment_sum.register_kernel("cuda")
def _(
    grad: Tensor,
    sorted_rows: Tensor,
    permutation: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    num_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from recemb.kernels.bag_update import launch

    return launch.segment_sum(
        launch.Lookups(grad, sorted_rows, permutation, sources, scales), num_rows
    )


@segment_sum.register_fake
def _(
    grad: Tensor,
    sorted_rows: Tensor,
    permutation: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    num_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(sorted_rows),
        grad.new_empty(permutation.numel(), grad.shape[1], dtype=_wide(grad)),
        permutation.new_empty(()),
    )


@torch.library.custom_op("recemb::dense_gradient", mutates_args=(), device_types="cpu")
def dense_gradient(
    grad: Tensor,
    sorted_rows: Tensor,
    permutation: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    num_rows: int,
) -> Tensor:
    """Return the gradient (R, D) of the whole table."""
    runs = reference.find_runs(sorted_rows, permutation, sources, scales, num_rows)
    return reference.dense_gradient(grad, runs, num_rows)


@dense_gradient.register_kernel("cuda")
def _(
    grad: Tensor,
    sorted_rows: Tensor,
    permutation: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    num_rows: int,
) -> Tensor:
    from recemb.kernels.bag_update import launch

    return launch.dense_gradient(
        launch.Lookups(grad, sorted_rows, permutation, sources, scales), num_rows
    )


@dense_gradient.register_fake
def _(
    grad: Tensor,
    sorted_rows: Tensor,
    permutation: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    num_rows: int,
) -> Tensor:
    return grad.new_empty(num_rows, grad.shape[1], dtype=_wide(grad))


def _wide(grad: Tensor) -> torch.dtype:
    return torch.float64 if grad.dtype == torch.float64 else torch.float32
