"""The reference against torch.optim, against the definitions, and against autograd."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from recemb.kernels.bag_update import dense_gradient, plan_update, segment_sum, update_rows
from recemb.kernels.bag_update.reference import ROWWISE_STATE

LR, EPS, BETA1, BETA2, DECAY = 0.05, 1e-8, 0.9, 0.99, 0.1
FLOAT64 = 1e-12  # a few hundred roundings of values near 1
NUM_STEPS = 4

Optimizers = dict[tuple[str, str], Callable[[Iterable[Tensor]], torch.optim.Optimizer]]
TORCH_OPTIMIZERS: Optimizers = {
    ("sgd", "none"): lambda p: torch.optim.SGD(p, LR),
    ("sgd", "l2"): lambda p: torch.optim.SGD(p, LR, weight_decay=DECAY),
    ("adagrad", "none"): lambda p: torch.optim.Adagrad(p, LR, eps=EPS),
    ("adagrad", "l2"): lambda p: torch.optim.Adagrad(p, LR, eps=EPS, weight_decay=DECAY),
    ("adam", "none"): lambda p: torch.optim.Adam(p, LR, (BETA1, BETA2), EPS),
    ("adam", "l2"): lambda p: torch.optim.Adam(p, LR, (BETA1, BETA2), EPS, DECAY),
    ("adam", "decoupled"): lambda p: torch.optim.AdamW(p, LR, (BETA1, BETA2), EPS, DECAY),
}


def hyper(step: int) -> Tensor:
    corrections = [1 - BETA1**step, 1 - BETA2**step]
    return torch.tensor([LR, EPS, BETA1, BETA2, DECAY, *corrections, 0.0], dtype=torch.float64)


def zero_state(optimizer: str, weight: Tensor) -> list[Tensor]:
    return [
        weight.new_zeros(weight.shape[:1] if is_rowwise else weight.shape)
        for is_rowwise in ROWWISE_STATE[optimizer]
    ]


@pytest.mark.parametrize(("optimizer", "mode"), TORCH_OPTIMIZERS)
def test_is_the_dense_optimizer_of_torch_where_every_row_is_touched(
    optimizer: str, mode: str
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    parameter = nn.Parameter(weight.clone())
    dense = TORCH_OPTIMIZERS[optimizer, mode]([parameter])
    state = zero_state(optimizer, weight)
    for step in range(1, NUM_STEPS + 1):
        rows = torch.cat([torch.arange(5), torch.tensor([2, 2, 4])])
        grad = torch.randn(8, 3, dtype=torch.float64, generator=generator)
        parameter.grad = torch.zeros_like(weight).index_add_(0, rows, grad)
        dense.step()
        update_rows(
            weight,
            state,
            grad,
            rows,
            None,
            None,
            hyper(step),
            optimizer=optimizer,
            weight_decay_mode=mode,
        )
    torch.testing.assert_close(weight, parameter.data, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "rowwise_adam"])
def test_rowwise_optimizer_is_its_full_form_where_squares_are_equal_in_a_row(
    optimizer: str,
) -> None:
    # The mean of equal squares is each of them, so one value per row says as much as D of them.
    signs = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64)
    full, rowwise = torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    full_name = optimizer.removeprefix("rowwise_")
    full_state, rowwise_state = zero_state(full_name, full), zero_state(optimizer, rowwise)
    for step in range(1, NUM_STEPS + 1):
        grad = signs * step
        for name, weight, state in (
            (full_name, full, full_state),
            (optimizer, rowwise, rowwise_state),
        ):
            update_rows(
                weight, state, grad, torch.arange(2), None, None, hyper(step), optimizer=name
            )
    torch.testing.assert_close(rowwise, full, rtol=FLOAT64, atol=FLOAT64)


def test_rowwise_adagrad_takes_the_mean_of_squares() -> None:
    weight, total = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    grad = torch.tensor([[1.0, 7.0]], dtype=torch.float64)
    numbers = torch.tensor([1.0, 0.0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    rows = torch.tensor([0])
    update_rows(weight, [total], grad, rows, None, None, numbers, optimizer="rowwise_adagrad")
    assert total.tolist() == [25.0]  # (1 + 49) / 2
    torch.testing.assert_close(weight, -grad / 5, rtol=FLOAT64, atol=0.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "rowwise_adam"])
def test_decoupled_decay_shrinks_the_weight_before_the_step(optimizer: str) -> None:
    weight = torch.tensor([[2.0, -3.0]], dtype=torch.float64)
    shrunk = weight * (1 - LR * DECAY)
    grad, rows = torch.tensor([[0.5, 0.25]], dtype=torch.float64), torch.tensor([0])
    for target, mode in ((weight, "decoupled"), (shrunk, "none")):
        update_rows(
            target,
            zero_state(optimizer, target),
            grad,
            rows,
            None,
            None,
            hyper(1),
            optimizer=optimizer,
            weight_decay_mode=mode,
        )
    torch.testing.assert_close(weight, shrunk, rtol=FLOAT64, atol=0.0)


def test_dense_gradient_is_that_of_autograd() -> None:
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    grad = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    scales = torch.rand(7, dtype=torch.float64, generator=generator)
    rows = torch.tensor([5, 0, 5, 5, 2, 0, 2])
    sources = torch.tensor([0, 0, 1, 2, 2, 2, 1])
    bags = torch.zeros_like(grad).index_add(0, sources, scales.unsqueeze(1) * table[rows])
    (expected,) = torch.autograd.grad(bags, table, grad)
    found = dense_gradient(grad, rows, sources, scales, num_rows=6)
    torch.testing.assert_close(found, expected, rtol=FLOAT64, atol=FLOAT64)


def test_segment_sum_is_the_dense_gradient_without_its_empty_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(9, 4, generator=generator)
    rows = torch.tensor([8, 0, 3, 3, 20, 0, 7, 8, -1])
    distinct, sums, count = segment_sum(grad, rows, None, None, num_rows=20)
    assert distinct.tolist() == [0, 3, 7, 8, 20, 20, 20, 20, 20]
    assert int(count) == 4
    assert torch.equal(sums[:4], dense_gradient(grad, rows, None, None, 20)[[0, 3, 7, 8]])
    assert not sums[4:].any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_plan_keeps_the_order_of_equal_rows(dtype: torch.dtype) -> None:
    plan = plan_update(torch.tensor([3, 1, 3, 0, 1, 3], dtype=dtype), num_rows=4)
    assert plan.sorted_rows.tolist() == [0, 1, 1, 3, 3, 3]
    assert plan.permutation.tolist() == [3, 1, 4, 0, 2, 5]


def test_plan_sorts_rows_as_int32_where_they_fit() -> None:
    rows = torch.tensor([2**40, 1, -(2**40)])
    narrow, wide = plan_update(rows, 2**31 - 2), plan_update(rows, 2**31 - 1)
    assert narrow.sorted_rows.dtype == torch.int32
    assert narrow.sorted_rows.tolist() == [-1, 1, 2**31 - 2]
    assert wide.sorted_rows.dtype == torch.int64
    assert wide.sorted_rows.tolist() == [-1, 1, 2**31 - 1]


def test_many_rows_are_updated_in_more_than_one_block() -> None:
    width, num_rows = 4096, 600  # more than 2^20 values
    weight, grad = torch.zeros(num_rows, width), torch.ones(num_rows, width)
    rows = torch.arange(num_rows).flip(0)
    numbers = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])
    update_rows(weight, [], grad, rows, None, None, numbers, optimizer="sgd")
    assert torch.equal(weight, -grad)
