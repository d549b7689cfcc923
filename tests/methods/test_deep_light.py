"""DeepLight: the schedule, the exact budget, what may become the best state, interruptions."""

import math

import pytest
import torch

from recemb.methods.deep_light import DeepLight, Pruner, PruningSchedule
from recemb.tables.computed import ComputedTables
from recemb.tables.method import Budget


def schedule(**changes):
    named = {"final": 0.8, "ramp_steps": 100, "tolerance": 1e-3, "total_steps": 10**6, **changes}
    return PruningSchedule(**named)


def test_the_rate_is_the_paper_s():
    rates = [schedule().rate(step) for step in (0, 100, 200, 1000, 10**6)]
    expected = [0.8 * (1 - 0.99**power) for power in (0, 1, 2, 10)]
    assert rates == pytest.approx([*expected, 0.8])


def test_the_authors_constant_takes_68_730_updates():
    # Of a final share of 1: 100 ln(0.001) / ln(0.99).
    assert not schedule(final=1.0).is_final(68_731 - 2)
    assert schedule(final=1.0).is_final(68_731 + 1)


@pytest.mark.parametrize("final", [0.05, 0.4, 0.95])
def test_the_final_share_is_reached_after_half_of_the_stage_unless_told_otherwise(final):
    made = schedule(final=final, ramp_steps=None, total_steps=1000)
    assert not made.is_final(499)
    assert made.is_final(500)


def test_a_share_that_is_not_reached_in_time_is_refused():
    with pytest.raises(ValueError, match=r"but the stage has 1,000; lower ramp_steps"):
        schedule(total_steps=1000)


@pytest.mark.parametrize(
    "wrong", [{"sparsity": 1.0}, {"warmup_epochs": 0}, {"ramp_steps": 0}, {"tolerance": 0}], ids=str
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="DeepLight: "):
        DeepLight(**wrong)


def test_the_final_tables_fill_the_budget_and_keep_it(staged):
    budget = Budget(ratio=0.3)
    context = staged(DeepLight.stages, budget=budget)
    tables = DeepLight(warmup_epochs=1).run(context)
    allowed, found = budget.allowed_bytes(context.specs), tables.storage().serve_bytes
    # One value of each kind takes at most a new row of its own.
    assert allowed - 100 < found <= allowed
    frozen = tables.freeze()
    assert isinstance(frozen, ComputedTables)
    assert sum(t.nbytes for t in frozen.state_dict().values()) == found
    assert context.evaluate(frozen) == context.evaluate(tables)


def test_zeros_follow_the_schedule_while_training_goes_on(staged, monkeypatch):
    context, shares = staged(DeepLight.stages, epochs=4), {}
    method = DeepLight(warmup_epochs=1, prune_every_steps=5, sparsity=0.7)
    original = Pruner.step

    def step(pruner, updates, batches):
        loss = original(pruner, updates, batches)
        tables = pruner._tables
        vectors = torch.cat([tables.table(s.name) for s in context.specs if s.embedding_dim > 1])
        shares[pruner.step_count] = float((vectors == 0).float().mean())
        return loss

    monkeypatch.setattr(Pruner, "step", step)
    method.run(context)
    made = schedule(final=0.7, ramp_steps=None, total_steps=48)
    size = 3 * 60 * 8
    for count in range(5, 49, 5):
        # To a value, of which a share is a floor.
        assert shares[count] == pytest.approx(made.rate(count), abs=2 / size)
    # What was set to zero grows again before the next pruning.
    assert shares[44] < shares[40]


def test_without_a_budget_the_sparsity_is_the_share_of_zeros(staged):
    context = staged(DeepLight.stages)
    tables = DeepLight(warmup_epochs=1, sparsity=0.6).run(context)
    for kind in (8, 1):
        values = torch.cat([tables.table(s.name) for s in context.specs if s.embedding_dim == kind])
        assert math.ceil(values.numel() * 0.6) == int((values == 0).sum())


def test_only_states_at_the_final_share_are_the_best(staged):
    context = staged(DeepLight.stages, budget=Budget(ratio=0.2), epochs=6)
    DeepLight(warmup_epochs=1).run(context)
    # Reached after 36 of 72 updates, that is with the third of six evaluations.
    assert context.fitted.progress.best_step >= 36


def test_the_optimizer_is_kept_after_the_warm_up(staged):
    context = staged(DeepLight.stages, epochs=1)
    DeepLight(warmup_epochs=2).run(context)
    state = context.fitted.optimizer_state
    assert {int(part["step"]) for part in state["state"].values()} == {3 * 12}


def test_at_a_quarter_of_the_bytes_it_is_well_above_hashing(staged, hashed_auc):
    budget = Budget(ratio=0.25)
    context = staged(DeepLight.stages, budget=budget, epochs=6)
    tables = DeepLight().run(context)
    auc = context.evaluate(tables)["val/auc"]
    assert auc > 0.8
    assert auc > hashed_auc(budget, epochs=6) + 0.02


# Calls: the fit, 12 updates and a score of the warm-up, the fit of the pruning, then 12 updates and
# a score of each epoch. 28 is the score of its first one, after a checkpoint of its last update.
@pytest.mark.parametrize("stop_at", [8, 22, 28])
def test_a_run_killed_in_any_stage_ends_as_if_undisturbed(resumes, stop_at):
    method = DeepLight(warmup_epochs=1, prune_every_steps=5)
    resumes(method, stop_at, budget=Budget(ratio=0.3), epochs=3)


def test_an_infeasible_budget_is_refused_before_training(staged):
    context = staged(DeepLight.stages, budget=Budget(num_bytes=10))
    with pytest.raises(ValueError, match="DeepLight: the budget allows 10 bytes, but the least is"):
        DeepLight().run(context)
