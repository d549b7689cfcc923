"""ALPT: the second pass by hand, stochastic rounding, what leaves no trace, interruptions."""

import math

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.methods.alpt import ALPT, update_steps
from recemb.models.mlp import MLP
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

WIDTH = 4
SPECS = [
    TableSpec(name=name, num_embeddings=n, embedding_dim=WIDTH, feature_names=(f"f{name}",))
    for name, n in (("a", 30), ("b", 9))
]
WEIGHT = TableSpec(name="w", num_embeddings=30, embedding_dim=1, feature_names=("fa",))
LEARNING_RATE = 0.5
BETA1, BETA2 = 0.9, 0.999


def build(specs=SPECS, *, kind="sgd", **settings):
    return ALPT(**settings).build(
        specs,
        {},
        None,
        optimizer=TableOptimizer(kind=kind, learning_rate=LEARNING_RATE),
        seed=1,
        device=torch.device("cpu"),
    )


def features(a, b):
    return KeyedJaggedTensor(
        keys=["fa", "fb"],
        values=torch.tensor([*a, *b]),
        lengths=torch.ones(len(a) + len(b), dtype=torch.int32),
    )


class Linear:
    """The part of a fit that the second pass asks: the mean of sum(e * w) over a batch."""

    def __init__(self, tables, weights):
        self.tables, self.weights = tables, weights

    def loss(self, batch):
        return (self.tables(batch).values() * self.weights).sum() / len(self.weights)


def step_of(value, step, bits):
    """Return d e / d step of LSQ for one value."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    u = value / step
    if u <= low:
        return low
    return high if u >= high else float(np.round(u)) - u


@pytest.mark.parametrize("bits", [8, 3])
def test_the_second_pass_moves_steps_by_the_formula_and_nothing_else(bits):
    tables = build(bits=bits, step=0.1, step_learning_rate=0.01)
    (steps,) = tables.row_steps
    features_ = features([3, 5, 3], [0, 1, 8])
    batch = type("Batch", (), {"features": features_, "__len__": lambda self: 3})()
    weights = torch.randn(3, 2 * WIDTH, generator=torch.Generator().manual_seed(0))
    before = {name: tables.table(name).clone() for name in ("a", "b")}
    # Pass 1 by hand: SGD from the integers.
    ids = {"a": [3, 5, 3], "b": [0, 1, 8]}
    expected = {}
    for t, name in enumerate("ab"):
        for n, i in enumerate(ids[name]):
            row = expected.setdefault((name, i), before[name][i].double() * 0.1)
            row -= LEARNING_RATE * weights[n, t * WIDTH : (t + 1) * WIDTH].double() / 3
    loss = Linear(tables, weights)
    steps.keep()
    loss.loss(batch.features).backward()
    updates = type("Updates", (), {"loss": lambda self, b: loss.loss(b.features)})()
    with tables.hold_rows():
        update_steps(tables, updates, [batch])
    factor = 1 / math.sqrt(3 * WIDTH * (2 ** (bits - 1) - 1))
    moved = torch.full((39,), 0.1)
    for (name, i), row in expected.items():
        t = "ab".index(name)
        grads = [weights[n, t * WIDTH :] / 3 for n, j in enumerate(ids[name]) if j == i]
        grad = factor * sum(
            float(g[d]) * step_of(float(row[d]), 0.1, bits) for g in grads for d in range(WIDTH)
        )
        # Adam's first step is its learning rate times the sign, but for eps.
        moved[i + 30 * t] = 0.1 - 0.01 * grad / (abs(grad) + 1e-8)
        assert float(steps.exp_avg[i + 30 * t]) == pytest.approx((1 - BETA1) * grad, rel=1e-3)
    torch.testing.assert_close(steps.steps, moved)
    for (name, i), row in expected.items():
        step = float(moved[i + 30 * "ab".index(name)])
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        units = (row / step).clamp(low, high)
        assert bool(((tables.table(name)[i] - units).abs() < 1.0001).all())
    for name, first in before.items():
        untouched = [i for i in range(len(first)) if i not in ids[name]]
        assert torch.equal(tables.table(name)[untouched], first[untouched])


def test_rows_are_right_on_average():
    tables = build()
    (steps,) = tables.row_steps
    steps.steps.uniform_(0.01, 0.1, generator=torch.Generator().manual_seed(0))
    rows, values = torch.arange(30), torch.rand(30, WIDTH) * 0.4 - 0.2
    total = torch.zeros(30, WIDTH, dtype=torch.float64)
    for seed in range(2000):
        total += steps.rounding(seed).apply(values, rows).double()
    found = total / 2000 * steps.steps[rows].unsqueeze(1).double()
    # A mean of 2000 draws between two neighbours: a deviation of at most step / 2 / 44.
    limit = 5 * steps.steps[rows].unsqueeze(1) / 2 / 44
    assert bool(((found - values).abs() < limit).all())


def test_vectors_are_integers_times_the_steps_of_their_rows():
    tables = build()
    tables.row_steps[0].steps.copy_(torch.linspace(0.01, 0.05, 39))
    found = tables(features([3, 5], [8, 0])).to_dict()
    steps = torch.linspace(0.01, 0.05, 39)
    expected = tables.table("b")[[8, 0]].float() * steps[[38, 30]].unsqueeze(1)
    assert torch.equal(found["fb"], expected)


@pytest.mark.parametrize(("bits", "row_bytes"), [(8, 4), (4, 2)])
def test_bytes_are_the_bits_and_a_step_for_each_row(bits, row_bytes):
    storage = build([*SPECS, WEIGHT], bits=bits).storage()
    assert storage.serve == {"weights": 39 * row_bytes + 30 * 4, "scales": 39 * 4}


def test_rows_of_width_one_stay_float32():
    tables = build([*SPECS, WEIGHT])
    assert tables.table("w").dtype == torch.float32
    assert {tables.table(name).dtype for name in "ab"} == {torch.int8}


@pytest.mark.parametrize("bits", [2, 4])
def test_first_integers_are_within_their_bits(bits):
    tables = build(bits=bits, init_std=1.0)
    values = torch.cat([tables.table("a"), tables.table("b")])
    assert int(values.min()) == -(2 ** (bits - 1))
    assert int(values.max()) == 2 ** (bits - 1) - 1


def test_the_published_ratio_at_width_16():
    spec = TableSpec(name="t", num_embeddings=1000, embedding_dim=16, feature_names=("f",))
    assert ALPT().plan([spec], {}, None).ratio == 0.3125
    assert not ALPT().plan([spec], {}, Budget(ratio=0.3)).is_feasible


@pytest.mark.parametrize(
    "wrong", [{"bits": 16}, {"step": 0.0}, {"step_learning_rate": -1.0}], ids=str
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="ALPT: "):
        ALPT(**wrong)


def test_of_a_row_updated_twice_the_last_values_count():
    tables = build()
    (steps,) = tables.row_steps
    steps.keep()
    grid = steps.rounding(0)
    grid.apply(torch.ones(2, WIDTH), torch.tensor([1, 4]))
    grid.apply(torch.full((2, WIDTH), 2.0), torch.tensor([0, 4]))
    second = steps.begin_second(8)
    assert second.rows.tolist() == [0, 1, 4]
    assert second.values[:, 0].tolist() == [2, 1, 2]


@pytest.mark.parametrize("accumulate_batches", [1, 3])
def test_a_second_pass_leaves_no_trace_in_the_model_and_sees_its_dropout(
    staged, monkeypatch, accumulate_batches
):
    """With steps that do not move, a run is the one that makes no second pass."""
    options = {"hidden_units": [8], "batch_norm": True, "dropout": 0.5}
    settings = {"epochs": 1, "accumulate_batches": accumulate_batches}
    states, seen, forward = [], [], MLP.forward

    def noted(mlp, inputs):
        if mlp.training:
            seen.append(torch.get_rng_state())
        return forward(mlp, inputs)

    monkeypatch.setattr(MLP, "forward", noted)
    for folder in ("two", "one"):
        context = staged(ALPT.stages, folder=folder, **settings)
        context.model_options = options
        if folder == "one":
            masks = list(seen)
            monkeypatch.setattr("recemb.methods.alpt.update_steps", lambda *_: None)
        tables = ALPT(step_learning_rate=0.0).run(context)
        states.append((tables.table("f0").clone(), context.fitted.model.state_dict()))
    k = accumulate_batches
    assert len(masks) == 2 * 12
    for first in range(0, len(masks), 2 * k):
        for n in range(k):
            assert torch.equal(masks[first + n], masks[first + k + n])
    assert torch.equal(states[0][0], states[1][0])
    assert all(torch.equal(v, states[1][1][name]) for name, v in states[0][1].items())


def test_a_fit_moves_the_steps_of_rows_it_saw_and_serves_what_it_scored(staged):
    context = staged(ALPT.stages, epochs=4)
    tables = ALPT(step_learning_rate=1e-3).run(context)
    (steps,) = tables.row_steps
    counts = torch.cat([context.id_counts[f"f{i}"] for i in range(3)])
    assert bool((steps.steps[counts == 0] == 0.01).all())
    assert bool((steps.steps[counts > 0] != 0.01).all())
    assert context.evaluate(tables)["val/auc"] > 0.8
    assert context.evaluate(tables.freeze()) == context.evaluate(tables)


# Calls: the fit, 12 updates with a loss each, a score, for each of two epochs.
@pytest.mark.parametrize("stop_at", [8, 9, 30])
def test_a_killed_run_ends_as_if_undisturbed(resumes, stop_at):
    resumes(ALPT(step_learning_rate=1e-3), stop_at, epochs=2)
