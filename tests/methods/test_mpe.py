"""MPE: prices of groups, what the search hands on, budgets, interruptions."""

import pytest
import torch

from recemb.methods.auto_srh import frequency_groups
from recemb.methods.lsq import LearnedSteps
from recemb.methods.mixed_precision import FixedPrecision, SearchedPrecision
from recemb.methods.mpe import MPE, prices
from recemb.tables.method import Budget

FAST = {"num_groups": 4, "measured_steps": 6}


def test_the_price_of_a_bit_falls_as_a_group_s_ids_occur_more_often():
    groups = torch.tensor([0, 0, 1, 1, 3], dtype=torch.uint8)
    counts = torch.tensor([30, 10, 4, 4, 2])
    expected = torch.tensor([2 / 40, 2 / 8, 0, 1, 0])
    assert torch.equal(prices(groups, counts, 5), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": []},
        {"bits": [2, 1]},
        {"bits": [1, 9]},
        {"num_groups": 257},
        {"temperature": 0.0},
        {"penalty": -1.0},
        {"search_epochs": 0},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="MPE: "):
        MPE(**wrong)


def noted(context, note):
    """Call `note` with the stage, the tables and whether the fit is still to come."""
    fit = context.fit

    def noting(tables, *, stage, recipe=None):
        note(stage, tables, True)
        found = fit(tables, stage=stage, recipe=recipe)
        note(stage, tables, False)
        return found

    context.fit = noting


def test_retraining_keeps_network_and_scales_and_begins_with_the_first_vectors(staged):
    context, seen = staged(MPE.stages, epochs=2), {}

    def note(stage, tables, is_before):
        names = [spec.name for spec in context.specs]
        seen[stage, is_before] = (
            {name: tables.table(name).clone() for name in names},
            [
                (t.steps().detach().clone(), dict(t.named_parameters()).get("offsets"))
                for t in tables.transforms.all()
            ],
            None
            if stage == "search" and is_before
            else {k: v.clone() for k, v in context.fitted.model.state_dict().items()},
        )
        seen[stage, is_before][1][:] = [
            (steps, None if offset is None else offset.detach().clone())
            for steps, offset in seen[stage, is_before][1]
        ]

    noted(context, note)
    MPE(**FAST).run(context)
    first, begun = seen["search", True], seen["retrain", True]
    assert all(torch.equal(first[0][name], begun[0][name]) for name in first[0])
    found = seen["search", False]
    for (steps, offset), (kept, kept_offset) in zip(found[1], begun[1], strict=True):
        assert torch.equal(steps, kept)
        assert offset is None or torch.equal(offset, kept_offset)
    assert all(torch.equal(value, begun[2][name]) for name, value in found[2].items())
    assert not torch.equal(begun[0]["f0"], seen["retrain", False][0]["f0"])


def test_gates_stand_still_while_steps_are_measured(staged):
    gates = []
    for measured_steps in (12, 6):
        context = staged(MPE.stages, folder=str(measured_steps), epochs=1)
        method = MPE(num_groups=4, measured_steps=measured_steps)
        groups = frequency_groups(context.specs, context.id_counts, 4)
        search = method.searched(context, groups)
        context.fit(search, stage="search", recipe=method.search_recipe(search))
        gates += [t.gates for t in search.transforms.all() if isinstance(t, SearchedPrecision)]
    assert not gates[0].any()
    assert gates[1].any()


def test_a_higher_price_leaves_fewer_bits(staged):
    found = []
    for penalty in (0.0, 1.0):
        context = staged(MPE.stages, folder=str(penalty), epochs=2)
        found.append(MPE(penalty=penalty, **FAST).run(context).storage().serve_bytes)
    assert found[1] < found[0]


@pytest.mark.parametrize("ratio", [0.06, 0.15])
def test_a_budget_is_kept(staged, ratio):
    budget = Budget(ratio=ratio)
    context = staged(MPE.stages, budget=budget, epochs=2)
    tables = MPE(penalty=0.0, **FAST).run(context)
    assert tables.storage().serve_bytes <= budget.allowed_bytes(context.specs)
    frozen = tables.freeze()
    stored = sum(t.nbytes for t in frozen.state_dict().values())
    assert stored == tables.storage().serve_bytes
    assert context.evaluate(frozen) == context.evaluate(tables)


def test_it_learns_the_planted_clicks(staged):
    context = staged(MPE.stages, epochs=6)
    tables = MPE(penalty=1e-4, **FAST).run(context)
    assert context.evaluate(tables)["val/auc"] > 0.8


def test_first_order_weights_have_eight_bits_and_vectors_those_of_their_group(staged):
    context = staged(MPE.stages, epochs=1)
    tables = MPE(**FAST).run(context)
    narrow, wide = (
        next(t for t in tables.transforms.all() if isinstance(t, kind))
        for kind in (LearnedSteps, FixedPrecision)
    )
    assert narrow.integers.bits == 8
    groups = frequency_groups(context.specs, context.id_counts, 4)
    joined = torch.cat([groups[table.name] for table in wide.group.tables])
    for group in range(4):
        assert len(wide.classes[joined == group].unique()) == 1


def test_a_budget_below_rows_without_bits_is_refused_before_training(staged):
    context = staged(MPE.stages, budget=Budget(num_bytes=100))
    with pytest.raises(ValueError, match="MPE: the budget allows 100 bytes, but the least is"):
        MPE().run(context)


# Calls: the fit, 12 updates and a score for each epoch of either stage, of two epochs.
@pytest.mark.parametrize("stop_at", [20, 34])
def test_a_killed_run_ends_as_if_undisturbed(resumes, stop_at):
    resumes(MPE(**FAST), stop_at, epochs=2, budget=Budget(ratio=0.1))
