"""The fused update of the rows that a batch touched: sort, sum duplicates, step, round.

With g the sum over the lookups i of row r of scales[i] * grad[sources[i]], and hyper =
(lr, eps, beta1, beta2, wd, c1, c2, unused), each touched row w = weight[r] is updated once:

- weight decay first: "l2" adds wd * w to g; "decoupled" multiplies w by 1 - lr * wd
- sgd: w -= lr * g
- adagrad, state [s]: s += g^2; w -= lr * g / (sqrt(s) + eps)
- rowwise_adagrad, state [s], s (R,): as adagrad with the mean of g^2 over the row
- adam, state [m, v]: m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
  w -= (lr / c1) * m / (sqrt(v) / sqrt(c2) + eps)
- rowwise_adam, state [m, v], v (R,): as adam with the mean of g^2 over the row

c1 = 1 - beta1^t and c2 = 1 - beta2^t are the caller's, t being the number of the step.

DETERMINISM: no atomics; a stable sort, then sums in a fixed order, so the same inputs give the same
bits on the same device, compiler and number of lookups. Nothing waits for the host on a GPU.
ACCUMULATION: float32 whatever the types of weights and gradient; float64 on the CPU where weight,
state and gradient are float64. WHAT IS SAVED FOR BACKWARD: nothing; these ops run in a backward
pass and have no gradient of their own.

Shapes: `R` rows of the table, `D` its width, `M` lookups, `G` rows of the gradient.

Source: the sort-based exact update follows FBGEMM's table-batched embeddings (Khudia et al.,
arXiv:2101.05615) in what it computes; Adam is Kingma and Ba (ICLR 2015), algorithm 1, applied to
touched rows only.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from recemb.kernels.bag_update import ops
from recemb.kernels.bag_update.check import check_lookups, check_plan, check_table

__all__ = ["UpdatePlan", "dense_gradient", "plan_update", "segment_sum", "update_rows"]


class UpdatePlan(NamedTuple):
    """The lookups of a step in the order of their rows, from `plan_update`.

    Attributes:
        sorted_rows: (M,) int32 or int64, ascending.
        permutation: (M,) int64, the lookup that each came from; equal rows keep their order.
    """

    sorted_rows: Tensor
    permutation: Tensor


def plan_update(rows: Tensor, num_rows: int) -> UpdatePlan:
    """Return the lookups in the order of their rows; needs no gradient, so it can run early.

    Rows outside [0, num_rows), such as the sentinel num_rows, belong to no row and are skipped by
    all that takes the plan. Rows are sorted as int32 where num_rows allows.

    Args:
        rows: (M,) int32 or int64, in any order.
        num_rows: R.

    Raises:
        ValueError: if `rows` has another shape or type.

    Example:
        >>> import torch
        >>> plan_update(torch.tensor([4, 2, 4, 0]), num_rows=5).permutation
        tensor([3, 1, 0, 2])
    """
    check_lookups("plan_update", rows, None, None)
    return UpdatePlan(*ops.plan_update(rows, num_rows))


def update_rows(
    weight: Tensor,
    state: Sequence[Tensor],
    grad: Tensor,
    rows: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    hyper: Tensor,
    *,
    optimizer: str,
    weight_decay_mode: str = "none",
    rounding_seed: int | None = None,
    plan: UpdatePlan | None = None,
) -> None:
    """Update the touched rows of `weight` and `state` once each, in place, by the formulas above.

    Rows that no lookup names keep their bits, in weights and state.

    Args:
        weight: (R, D) float32, float16 or bfloat16, contiguous, not requiring grad. On the CPU
            also float64.
        state: the optimizer's tensors as above, (R, D) or (R,), float32 (float64 with a float64
            weight), contiguous.
        grad: (G, D) float32, float16 or bfloat16, contiguous; the gradient of the bags.
        rows: (M,) int32 or int64, in any order; those outside [0, R) are ignored.
        sources: (M,) int32 or int64, the row of `grad` that each lookup's gradient is; None if
            lookup i has row i. Not checked against G.
        scales: (M,) float32, what each lookup's gradient is multiplied by; None for 1.
        hyper: (8,) float32 or float64, as above, on the device of `weight`. In float32, 1 - beta2
            loses digits: 1e-5 of it at beta2 = 0.999; float64 does not.
        optimizer: "sgd", "adagrad", "rowwise_adagrad", "adam" or "rowwise_adam".
        weight_decay_mode: "none", "l2" or "decoupled".
        rounding_seed: for float16 and bfloat16 weights: round stochastically, by bits that depend
            on this seed (its low 32 bits) and the element alone; give each step another seed. None
            rounds to nearest.
        plan: what `plan_update(rows, R)` returned, to save the sort.

    Raises:
        ValueError: on a wrong word, shape, type, device or layout.
    """
    check_table(weight, state, hyper, optimizer, weight_decay_mode)
    check_lookups("update_rows", rows, sources, scales, grad=grad, width=weight.shape[1])
    sorted_rows, permutation = _planned(rows, weight.shape[0], plan)
    ops.update_rows(
        weight,
        list(state),
        grad,
        sorted_rows,
        permutation,
        sources,
        scales,
        hyper,
        optimizer,
        weight_decay_mode,
        rounding_seed,
    )


def segment_sum(
    grad: Tensor,
    rows: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    num_rows: int,
    *,
    plan: UpdatePlan | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of each touched row, for optimizers and encoders outside this package.

    Args:
        grad: (G, D) as for `update_rows`.
        rows: (M,) as for `update_rows`.
        sources: (M,) as for `update_rows`.
        scales: (M,) as for `update_rows`.
        num_rows: R.
        plan: what `plan_update(rows, num_rows)` returned, to save the sort.

    Returns:
        The distinct rows in ascending order, (M,), filled up with num_rows; their summed gradients
        (M, D), float32 (float64 for a float64 gradient), filled up with zeros; and the number of
        distinct rows, an int64 scalar on the device, so that nothing waits for the host.

    Raises:
        ValueError: on a wrong shape, type, device or layout.

    Example:
        >>> import torch
        >>> grad = torch.tensor([[1.0], [2.0], [4.0]])
        >>> rows, sums, count = segment_sum(grad, torch.tensor([3, 1, 3]), None, None, num_rows=9)
        >>> rows.tolist(), sums.flatten().tolist(), int(count)
        ([1, 3, 9], [2.0, 5.0, 0.0], 2)
    """
    check_lookups("segment_sum", rows, sources, scales, grad=grad)
    sorted_rows, permutation = _planned(rows, num_rows, plan)
    distinct, sums, count = ops.segment_sum(
        grad, sorted_rows, permutation, sources, scales, num_rows
    )
    return distinct, sums, count


def dense_gradient(
    grad: Tensor,
    rows: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    num_rows: int,
    *,
    plan: UpdatePlan | None = None,
) -> Tensor:
    """Return the gradient of the whole table (R, D), zero in rows without lookups.

    Args:
        grad: (G, D) as for `update_rows`.
        rows: (M,) as for `update_rows`.
        sources: (M,) as for `update_rows`.
        scales: (M,) as for `update_rows`.
        num_rows: R.
        plan: what `plan_update(rows, num_rows)` returned, to save the sort.

    Raises:
        ValueError: on a wrong shape, type, device or layout.
    """
    check_lookups("dense_gradient", rows, sources, scales, grad=grad)
    sorted_rows, permutation = _planned(rows, num_rows, plan)
    dense: Tensor = ops.dense_gradient(grad, sorted_rows, permutation, sources, scales, num_rows)
    return dense


def _planned(rows: Tensor, num_rows: int, plan: UpdatePlan | None) -> UpdatePlan:
    if plan is None:
        return UpdatePlan(*ops.plan_update(rows, num_rows))
    check_plan(rows, *plan)
    return UpdatePlan(*plan)
