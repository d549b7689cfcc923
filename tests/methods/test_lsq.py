"""LSQ+: first and measured steps, the learned ones' gradient, a fit, interruptions."""

import math

import pytest
import torch

from recemb.methods.lsq import LSQ, LearnedSteps
from recemb.tables.full import full_plan, full_tables
from recemb.tables.layout import group_tables
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

SPECS = [
    TableSpec(name=name, num_embeddings=n, embedding_dim=16, feature_names=(f"f{name}",))
    for name, n in (("a", 400), ("b", 50))
]
WEIGHT = TableSpec(name="w", num_embeddings=400, embedding_dim=1, feature_names=("fa",))


def build(specs=SPECS, **settings):
    return LSQ(**settings).build(
        specs, {}, None, optimizer=TableOptimizer(), seed=1, device=torch.device("cpu")
    )


def step_by_hand(values, bits=4):
    values = values.double()
    return float((values.mean().abs() + 3 * values.std(correction=0)) / 2 ** (bits - 1))


def test_the_first_steps_are_those_of_the_first_weights():
    tables = build()
    (rounding,) = tables.roundings
    expected = [step_by_hand(tables.table(name)) for name in ("a", "b")]
    assert rounding.steps().tolist() == pytest.approx(expected)
    assert rounding.offsets().tolist() == [0, 0]


def test_measured_steps_are_those_of_the_rows_that_were_read():
    tables = build(offset=False)
    (rounding,) = tables.roundings
    before = rounding.steps().tolist()
    rounding.is_measuring = True
    vectors = torch.randn(5, 16) + 0.3
    # Two passes, as of an accumulated update, and none of table b.
    for part in vectors.split([2, 3]):
        rounding(part, torch.arange(len(part)), torch.zeros(len(part), dtype=torch.int64))
    rounding.measure()
    assert rounding.steps().tolist() == pytest.approx([step_by_hand(vectors), before[1]])


def test_the_gradient_of_a_logarithm_is_the_scaled_one_times_the_step():
    group = group_tables(full_plan(SPECS))[0]
    rounding = LearnedSteps(group, 4, has_offset=True)
    with torch.no_grad():
        rounding.log_steps.copy_(torch.tensor([0.2, 0.1]).log())
    vectors, tables = torch.randn(6, 16), torch.tensor([0, 0, 0, 1, 1, 1])
    grad = torch.randn(6, 16)
    rounding(vectors, torch.arange(6), tables).backward(grad)
    for place, step in enumerate([0.2, 0.1]):
        its = slice(3 * place, 3 * place + 3)
        units = vectors[its].double() / step
        inside = (units > -8) & (units < 7)
        slope = torch.where(inside, units.round() - units, units.clamp(-8, 7))
        factor = 1 / math.sqrt(3 * 16 * 7)
        expected = step * factor * float((grad[its] * slope).sum())
        assert float(rounding.log_steps.grad[place]) == pytest.approx(expected, rel=1e-4)
        expected = factor * float((grad[its] * ~inside).sum())
        assert float(rounding.offset.grad[place]) == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("offset", "scales"), [(True, 8), (False, 4)])
def test_bytes_are_the_bits_and_a_few_scales(offset, scales):
    storage = build([*SPECS, WEIGHT], offset=offset).storage()
    assert storage.serve == {"weights": 450 * 8 + 400, "scales": 3 * scales}


@pytest.mark.parametrize(("ratio", "bits"), [(0.3, 8), (0.2, 6), (0.1, 3)])
def test_bits_left_open_are_the_most_that_the_budget_holds(ratio, bits):
    plan = LSQ(bits=None).plan(SPECS, {}, Budget(ratio=ratio))
    assert plan.parameters["bits"] == bits
    assert plan.is_feasible


def test_a_budget_below_its_bits_is_refused_with_their_bytes():
    budget = Budget(ratio=0.1)
    least = 450 * 8 + 2 * 8
    with pytest.raises(ValueError, match=f"LSQ: the budget allows .* the least is {least:,}"):
        LSQ().build(SPECS, {}, budget, optimizer=None, seed=0, device=torch.device("cpu"))


@pytest.mark.parametrize("wrong", [{"bits": 1}, {"bits": 9}, {"measured_steps": -1}], ids=str)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="LSQ: "):
        LSQ(**wrong)


def test_a_fit_measures_steps_first_and_learns_them_then(staged):
    context = staged(LSQ.stages, epochs=1)
    measured = LSQ(measured_steps=12).run(context)
    learned = LSQ(measured_steps=4).run(staged(LSQ.stages, folder="learned", epochs=1))
    wide = measured.rounding_of("f0")[0]
    # Vectors grew from +-1/sqrt(60) under 12 updates of Adam at 0.02.
    rows = torch.cat([measured.table(f"f{i}") for i in range(3)])
    assert 0.3 < float(wide.steps().detach().mean()) / step_by_hand(rows) < 3
    assert not torch.equal(wide.log_steps, learned.rounding_of("f0")[0].log_steps)
    assert learned.rounding_of("f0")[0].offset.abs().min() > 0
    assert context.evaluate(measured.freeze()) == context.evaluate(measured)


def test_two_bits_trained_are_above_two_bits_rounded_after_training(staged):
    context = staged(LSQ.stages, epochs=6)
    trained = context.evaluate(LSQ(bits=2, measured_steps=12).run(context))["val/auc"]
    other = staged(("train",), folder="full", epochs=6)
    full = full_tables(other.specs, optimizer=other.optimizer, seed=1)
    other.fit(full, stage="train")
    rounded = LSQ(bits=2).build(
        other.specs, {}, None, optimizer=None, seed=1, device=torch.device("cpu")
    )
    with torch.no_grad():
        for spec in other.specs:
            rounded.table(spec.name).copy_(full.table(spec.name))
        rounded.begin()
    assert trained > 0.8
    assert trained > other.evaluate(rounded)["val/auc"]


# Calls: the fit, 12 updates and a score for each of two epochs; steps are measured for 5 updates.
@pytest.mark.parametrize("stop_at", [5, 20])
def test_a_killed_run_ends_as_if_undisturbed(resumes, stop_at):
    resumes(LSQ(measured_steps=5), stop_at, epochs=2)
