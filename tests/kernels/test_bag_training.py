"""The lookups' backward passes: dense gradients, updates in place, compilation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recemb.kernels import bag

BATCH, WIDTH, TABLE_ROWS = 3, 4, 25
FEATURES = [2, 0, 0, 2, 0]
# Sums of a few float32 numbers of order one.
FLOAT32 = {"atol": 1e-5, "rtol": 1e-5}
LENGTHS = [[2, 0, 1], [1, 1, 0], [0, 3, 4]]


def mixed_slots(device: str = "cpu") -> Tensor:
    """Hashed and not, sum and mean, several slots per feature on shared rows, feature 1 unused."""
    return bag.pack_slots(
        FEATURES,
        [0, 7, 7, 20, 0],
        [7, 13, 13, 5, 7],
        [0, 1, 2**32 - 1, 0, 9],
        [False, True, True, False, False],
        [True, False, True, False, True],
        device,
    )


def some_batch(device: str = "cpu") -> tuple[Tensor, Tensor, int]:
    """Values with out-of-range and negative ids, offsets, and the number of lookups."""
    offsets = torch.nn.functional.pad(torch.tensor(LENGTHS).flatten().cumsum(0), (1, 0))
    values = torch.tensor([3, 3, 6, 100, -5, 1, 2, 99, -1, 4, 4, -(2**31)])
    num_lookups = bag.count_lookups([sum(row) for row in LENGTHS], FEATURES)
    return values.to(device), offsets.to(device), num_lookups


def hyper_of(learning_rate: float, device: str = "cpu") -> Tensor:
    return torch.tensor([learning_rate, 1e-8, 0.9, 0.999, 0, 1, 1, 0], device=device)


@pytest.mark.parametrize("policy", ["ignore", "clamp"])
def test_dense_gradients_pass_gradcheck(policy: str) -> None:
    values, offsets, num_lookups = some_batch()
    weight = torch.randn(TABLE_ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(len(values), dtype=torch.float64, requires_grad=True)

    def lookup(weight: Tensor, weights: Tensor) -> Tensor:
        return bag.bag_dense(
            weight,
            values,
            offsets,
            weights,
            mixed_slots(),
            batch_size=BATCH,
            policy=policy,
            num_lookups=num_lookups,
            out_dtype=torch.float64,
        )

    assert torch.autograd.gradcheck(lookup, (weight, weights), fast_mode=True)


def test_dense_gradient_is_embedding_bags(device: str) -> None:
    weight = torch.randn(9, 8, device=device, requires_grad=True)
    values = torch.tensor([1, 8, 8, 0, 2], device=device)
    offsets = torch.tensor([0, 2, 2, 5], device=device)
    slots = bag.pack_slots([0], [0], [9], [0], [False], [True], device)
    found = bag.bag_dense(weight, values, offsets, None, slots, batch_size=3, num_lookups=5)
    grad = torch.randn(3, 8, device=device)
    (ours,) = torch.autograd.grad(found, weight, grad)
    expected = torch.nn.functional.embedding_bag(
        values, weight, offsets, mode="mean", include_last_offset=True
    )
    (theirs,) = torch.autograd.grad(expected, weight, grad)
    torch.testing.assert_close(ours, theirs, **FLOAT32)


def test_unscaled_lookup_has_the_same_gradient() -> None:
    weight = torch.randn(9, 8, requires_grad=True)
    values = torch.tensor([1, 8, 8, 0])
    slots = bag.pack_slots([0], [0], [9], [3], [True], [False])
    grads = [
        torch.autograd.grad(
            bag.bag_dense(weight, values, None, None, slots, batch_size=4, scaled=scaled)
            .square()
            .sum(),
            weight,
        )[0]
        for scaled in (False, True)
    ]
    assert torch.equal(*grads)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_sgd_in_place_is_a_dense_step(is_weighted: bool) -> None:
    values, offsets, num_lookups = some_batch()
    start = torch.randn(TABLE_ROWS, WIDTH)
    weights = torch.rand(len(values), requires_grad=True) if is_weighted else None
    grad = torch.randn(BATCH, len(FEATURES) * WIDTH)
    shared = {"batch_size": BATCH, "policy": "ignore", "num_lookups": num_lookups}

    dense = start.clone().requires_grad_()
    out = bag.bag_dense(dense, values, offsets, weights, mixed_slots(), **shared)
    wanted = [dense, weights] if weights is not None else [dense]
    expected = torch.autograd.grad(out, wanted, grad)

    weight, anchor = start.clone(), torch.zeros((), requires_grad=True)
    fused = bag.bag(
        weight,
        [],
        values,
        offsets,
        weights,
        mixed_slots(),
        hyper_of(0.5),
        anchor,
        optimizer="sgd",
        **shared,
    )
    assert torch.equal(fused, out)
    fused.backward(grad)
    torch.testing.assert_close(weight, start - 0.5 * expected[0], **FLOAT32)
    assert anchor.grad == 0
    if weights is not None:
        # From the rows before the update, as the dense gradient is.
        torch.testing.assert_close(weights.grad, expected[1], **FLOAT32)


def test_rowwise_adagrad_in_place_follows_its_formula() -> None:
    slots = bag.pack_slots([0], [0], [4], [0], [False], [False])
    weight, state = torch.zeros(4, 2), [torch.zeros(4)]
    anchor = torch.zeros((), requires_grad=True)
    for _ in range(2):
        out = bag.bag(
            weight,
            state,
            torch.tensor([1, 1, 3]),
            None,
            None,
            slots,
            hyper_of(0.1),
            anchor,
            batch_size=3,
            optimizer="rowwise_adagrad",
        )
        out.sum().backward()
    # Row 1 is read twice: g = 2 in both columns, s = 4 then 8; row 3: g = 1, s = 1 then 2.
    assert state[0].tolist() == [0, 8, 0, 2]
    step = -0.1 * (1 + 0.5**0.5)
    expected = torch.tensor([[0.0], [step], [0.0], [step]]).expand(4, 2)
    torch.testing.assert_close(weight, expected)


def test_two_lookups_of_one_buffer_update_one_after_the_other() -> None:
    slots = bag.pack_slots([0], [0], [2], [0], [False], [False])
    weight, anchor = torch.zeros(2, 1), torch.zeros((), requires_grad=True)
    arguments = (torch.tensor([1]), None, None, slots, hyper_of(1.0), anchor)
    first, second = (
        bag.bag(weight, [], *arguments, batch_size=1, optimizer="sgd") for _ in range(2)
    )
    (first + 2 * second).sum().backward()
    assert weight.tolist() == [[0.0], [-3.0]]


def test_learning_rate_of_the_backward_pass_counts() -> None:
    slots = bag.pack_slots([0], [0], [2], [0], [False], [False])
    weight, anchor = torch.zeros(2, 1), torch.zeros((), requires_grad=True)
    hyper = hyper_of(1.0)
    out = bag.bag(
        weight,
        [],
        torch.tensor([1]),
        None,
        None,
        slots,
        hyper,
        anchor,
        batch_size=1,
        optimizer="sgd",
    )
    hyper[0] = 0.25
    out.sum().backward()
    assert weight.tolist() == [[0.0], [-0.25]]


def test_no_update_without_an_anchor_that_wants_a_gradient() -> None:
    slots = bag.pack_slots([0], [0], [2], [0], [False], [False])
    weight, anchor = torch.ones(2, 1), torch.zeros((), requires_grad=False)
    weights = torch.ones(1, requires_grad=True)
    out = bag.bag(
        weight,
        [],
        torch.tensor([1]),
        None,
        weights,
        slots,
        hyper_of(1.0),
        anchor,
        batch_size=1,
        optimizer="sgd",
    )
    out.sum().backward()
    assert weight.tolist() == [[1.0], [1.0]]
    assert weights.grad is not None
    assert weights.grad.tolist() == [1.0]


def test_repeats_are_bit_equal(device: str) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        results.append(train(train_step, device))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def train_step(
    weight: Tensor,
    state: list[Tensor],
    values: Tensor,
    offsets: Tensor,
    weights: Tensor,
    slots: Tensor,
    hyper: Tensor,
    anchor: Tensor,
) -> Tensor:
    """Return a loss on a lookup of the batch in `some_batch`."""
    out = bag.bag(
        weight,
        state,
        values,
        offsets,
        weights,
        slots,
        hyper,
        anchor,
        batch_size=BATCH,
        optimizer="rowwise_adagrad",
        policy="ignore",
        num_lookups=bag.count_lookups([sum(row) for row in LENGTHS], FEATURES),
    )
    return out.tanh().square().sum()


def train(step: Callable[..., Tensor], device: str = "cpu") -> list[Tensor]:
    """Return loss, weights, state and the weights' gradient after three steps from one start."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(TABLE_ROWS, WIDTH, generator=generator).to(device)
    state = [torch.zeros(TABLE_ROWS, device=device)]
    values, offsets, _ = some_batch(device)
    weights = torch.rand(len(values), generator=generator).to(device).requires_grad_()
    anchor = torch.zeros((), device=device, requires_grad=True)
    for _ in range(3):
        loss = step(
            weight,
            state,
            values,
            offsets,
            weights,
            mixed_slots(device),
            hyper_of(0.1, device),
            anchor,
        )
        loss.backward()
    assert weights.grad is not None
    return [loss.detach(), weight, state[0], weights.grad]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_training_is_eager_training(backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(train_step, fullgraph=True, backend=backend)
    for found, expected in zip(train(compiled), train(train_step), strict=True):
        torch.testing.assert_close(found, expected, **FLOAT32)


@pytest.mark.slow
def test_compiled_training_takes_other_batches() -> None:
    torch.compiler.reset()
    slots = bag.pack_slots([0, 0], [0, 0], [9, 9], [1, 2], [True, True], [False, False])
    tables = [torch.ones(9, 2) for _ in range(2)]

    def step(weight: Tensor, values: Tensor, anchor: Tensor, hyper: Tensor) -> Tensor:
        batch_size = values.shape[0]
        return bag.bag(
            weight,
            [],
            values,
            None,
            None,
            slots,
            hyper,
            anchor,
            batch_size=batch_size,
            optimizer="sgd",
        ).square().sum()  # fmt: skip

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (5, 8, 2):
        values = torch.arange(size) * 7
        for table, run in zip(tables, (step, compiled), strict=True):
            run(table, values, torch.zeros((), requires_grad=True), hyper_of(0.1)).backward()
    assert torch.equal(*tables)


def test_differentiable_ops_pass_opcheck() -> None:
    values, offsets, num_lookups = some_batch()
    slots, weights = mixed_slots(), torch.rand(len(values), requires_grad=True)
    weight = torch.randn(TABLE_ROWS, WIDTH)
    lookup = (values, offsets, weights, slots)
    how = (BATCH, "ignore", torch.float32, num_lookups, True)
    torch.library.opcheck(
        torch.ops.recemb.bag_dense.default, (weight.clone().requires_grad_(), *lookup, *how)
    )
    # A learning rate of zero: the checks run the op several times and compare.
    anchor = torch.zeros((), requires_grad=True)
    torch.library.opcheck(
        torch.ops.recemb.bag.default,
        (weight, [], *lookup, hyper_of(0.0), anchor, *how, "sgd", "none", None),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(3, 2, requires_grad=True)}, "updated in place; use bag_dense"),
        ({"anchor": torch.zeros(1)}, r"anchor must be 0-dim, got shape \(1,\)"),
        ({"offsets": torch.tensor([0, 1, 2])}, "num_lookups must be given beside offsets"),
        ({"weights": torch.ones(2), "scaled": False}, "weights need scales"),
    ],
)
def test_arguments_that_do_not_fit_are_errors(change: dict[str, object], message: str) -> None:
    arguments = {
        "weight": torch.zeros(3, 2),
        "state": [],
        "values": torch.tensor([0, 1]),
        "offsets": None,
        "weights": None,
        "slots": bag.pack_slots([0], [0], [3], [0], [False], [False]),
        "hyper": hyper_of(1.0),
        "anchor": torch.zeros((), requires_grad=True),
        "batch_size": 2,
        "optimizer": "sgd",
    }
    with pytest.raises(ValueError, match=message):
        bag.bag(**{**arguments, **change})
