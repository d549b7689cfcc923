"""The ops: registered as torch.library wants them, compiled whole, strict about arguments."""

from typing import Any

import pytest
import torch
from torch import Tensor

from recemb.kernels.bag_update import (
    UpdatePlan,
    dense_gradient,
    ops,
    plan_update,
    segment_sum,
    update_rows,
)

HYPER = torch.tensor([0.1, 1e-8, 0.9, 0.99, 0.01, 0.1, 0.01, 0.0])


def arguments(**changes: Any) -> dict[str, Any]:
    """Return valid arguments of `update_rows` for row-wise Adagrad."""
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(6, 4, generator=generator),
        "state": [torch.zeros(6)],
        "grad": torch.randn(3, 4, generator=generator),
        "rows": torch.tensor([5, 0, 5, 6, 2]),
        "sources": torch.tensor([0, 1, 2, 0, 1]),
        "scales": torch.rand(5, generator=generator),
        "hyper": HYPER,
        "optimizer": "rowwise_adagrad",
        "weight_decay_mode": "l2",
        **changes,
    }


def lookups() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = arguments()
    plan = plan_update(given["rows"], 6)
    return (given["grad"], *plan, given["sources"], given["scales"])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_opcheck_of_plan_update(dtype: torch.dtype) -> None:
    torch.library.opcheck(ops.plan_update, (torch.tensor([3, 1, 3], dtype=dtype), 4))


@pytest.mark.parametrize(("optimizer", "num_parts"), [("sgd", 0), ("adam", 2)])
def test_opcheck_of_update_rows(optimizer: str, num_parts: int) -> None:
    state = [torch.zeros(6, 4) for _ in range(num_parts)]
    weight = torch.ones(6, 4)
    given = (weight, state, *lookups(), HYPER, optimizer, "l2", None)
    torch.library.opcheck(ops.update_rows, given)


def test_opcheck_of_segment_sum() -> None:
    torch.library.opcheck(ops.segment_sum, (*lookups(), 6))


def test_opcheck_of_dense_gradient() -> None:
    torch.library.opcheck(ops.dense_gradient, (*lookups(), 6))


def test_compiled_whole_gives_the_same() -> None:
    eager, compiled = arguments(), arguments()
    rest = {k: v for k, v in arguments().items() if k not in ("weight", "state", "rows")}

    def step(weight: Tensor, state: list[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
        plan = plan_update(rows, 6)
        update_rows(weight, state, rows=rows, plan=plan, **rest)
        inputs = (rest["grad"], rows, rest["sources"], rest["scales"])
        return *segment_sum(*inputs, 6), dense_gradient(*inputs, 6)

    given = step(eager["weight"], eager["state"], eager["rows"])
    program = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = program(compiled["weight"], compiled["state"], compiled["rows"])
    for a, b in zip(given, found, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(eager["weight"], compiled["weight"])
    assert torch.equal(eager["state"][0], compiled["state"][0])


def test_plan_made_earlier_gives_the_same() -> None:
    without, given = arguments(), arguments()
    update_rows(**without)
    update_rows(**given, plan=plan_update(given["rows"], 6))
    assert torch.equal(without["weight"], given["weight"])


def test_update_is_seen_by_autograd_as_a_change() -> None:
    # Whoever saved the weight for its backward pass must get an error, not wrong numbers.
    given = arguments()
    version = given["weight"]._version
    update_rows(**given)
    assert given["weight"]._version > version
    assert given["state"][0]._version > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamw"}, "optimizer must be one of sgd, .*, got 'adamw'"),
        ({"weight_decay_mode": "L2"}, "weight_decay_mode must be one of none, l2, decoupled"),
        ({"weight": torch.zeros(6)}, "weight must have 2 dimensions, got \\(6,\\)"),
        ({"weight": torch.zeros(6, 4).int()}, "weight must be float32, .*, got int32"),
        ({"weight": torch.zeros(4, 6).T}, "weight must be contiguous; call .contiguous"),
        ({"weight": torch.zeros(6, 4, requires_grad=True)}, "weight .* must not require grad"),
        ({"state": []}, "state of rowwise_adagrad must have the shapes \\[\\(6,\\)\\]"),
        ({"state": [torch.zeros(6, 4)]}, "got \\[\\(6, 4\\)\\]"),
        ({"state": [torch.zeros(6).half()]}, "state\\[0\\] must be float32, got float16"),
        ({"hyper": HYPER[:7]}, "hyper must hold 8 numbers"),
        ({"rows": torch.zeros(5)}, "rows must be int32, int64, got float32"),
        ({"sources": torch.zeros(4).long()}, "sources must have one entry per lookup, \\(5,\\)"),
        ({"scales": torch.zeros(5, 1)}, "scales must have 1 dimensions"),
        ({"grad": torch.zeros(3, 5)}, "grad must be as wide as weight, 4, got \\(3, 5\\)"),
        ({"sources": None}, "grad needs a row for each of 5 lookups, got 3; pass sources"),
        ({"plan": UpdatePlan(torch.zeros(4), torch.zeros(4))}, "sorted_rows must have one entry"),
    ],
)
def test_wrong_argument_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        update_rows(**arguments(**changes))


def test_too_wide_a_row_is_refused() -> None:
    grad = torch.zeros(1, 4097)
    with pytest.raises(ValueError, match="grad must be 1 to 4096 wide, got 4097; cut the table"):
        dense_gradient(grad, torch.tensor([0]), None, None, 3)
