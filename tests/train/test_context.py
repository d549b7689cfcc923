"""What recipes may ask: stages, steps of their own, conditions, results computed once."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from recemb.data.batch import Batch
from recemb.tables.full import full_tables
from recemb.tables.planned import PlannedTables
from recemb.tables.recipe import Recipe, Updates
from recemb.train.context import TrainingContext
from recemb.train.progress import StageReachedError
from recemb.train.ranks import Ranks

NUM_STEPS = 5
"""Batches of an epoch."""

Make = Callable[..., TrainingContext]


class StoppedError(Exception):
    """Stands for a process that was killed."""


def tables_of(context: TrainingContext) -> PlannedTables:
    return full_tables(context.specs, optimizer=context.optimizer, seed=1)


def weights(tables: PlannedTables) -> list[Tensor]:
    return [store.weight.detach().clone() for store in tables.engine.stores]


def equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_stage_that_was_not_announced_is_refused(make: Make) -> None:
    context = make()
    with pytest.raises(ValueError, match=r"no stage 'third'.*\['first', 'second'\]"):
        context.fit(tables_of(context), stage="third")


def test_the_progress_bar_says_which_stage_of_how_many(make: Make, monkeypatch) -> None:
    context, titles = make(max_epochs=1), []
    monkeypatch.setattr(context.log, "start_epoch", lambda title, **_: titles.append(title))
    context.fit(tables_of(context), stage="second")
    assert titles == ["second (2 of 2), epoch 1/1"]


def test_a_kept_model_is_the_same_object_and_a_fresh_one_begins_as_the_first_did(
    make: Make,
) -> None:
    context = make(max_epochs=1)
    tables = tables_of(context)
    context.fit(tables, stage="first")
    model = context.fitted.model
    context.fit(tables, stage="second", recipe=Recipe(model="keep"))
    assert context.fitted.model is model

    other = make(stages=("third", "fourth"), max_epochs=1)
    begun = []

    def note(updates: Updates, batches: Sequence[Batch]) -> float:
        if updates.step == 0:
            begun.append(other_model_of(updates))
        return updates.update(batches)

    for stage in ("third", "fourth"):
        other.fit(tables_of(other), stage=stage, recipe=Recipe(step=note))
    assert equal(begun[0], begun[1])


def other_model_of(updates: Updates) -> list[Tensor]:
    """Return copies of the weights of the model that a fit trains."""
    model: nn.Module = updates.plan.model
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(("optimizer", "steps"), [("keep", 2 * NUM_STEPS), ("fresh", NUM_STEPS)])
def test_the_dense_optimizer_is_kept_or_fresh(make: Make, optimizer, steps) -> None:
    context = make(max_epochs=1)
    tables = tables_of(context)
    context.fit(tables, stage="first", recipe=Recipe(take="last"))
    context.fit(tables, stage="second", recipe=Recipe(model="keep", optimizer=optimizer))
    state = context.fitted.optimizer_state
    assert state is not None
    assert {int(part["step"]) for part in state["state"].values()} == {steps}


def test_a_fresh_optimizer_forgets_the_rows_state(make: Make) -> None:
    context = make(max_epochs=1)
    tables = tables_of(context)
    context.fit(tables, stage="first")
    sums = [store.state["sum"].clone() for store in tables.engine.stores]
    assert any(float(s.max()) > 0 for s in sums)
    tables.reset_optimizer()
    assert all(float(store.state["sum"].max()) == 0 for store in tables.engine.stores)


def test_keeping_the_optimizer_of_a_fresh_model_is_refused() -> None:
    with pytest.raises(ValueError, match="needs model='keep'"):
        Recipe(optimizer="keep")


def test_an_own_step_is_asked_for_every_update(make: Make) -> None:
    context, seen = make(max_epochs=1), []

    def step(updates: Updates, batches: Sequence[Batch]) -> float:
        seen.append((updates.step, updates.total_steps, len(batches)))
        return updates.update(batches)

    plain, own = tables_of(context), tables_of(context)
    context.fit(plain, stage="first")
    context.fit(own, stage="second", recipe=Recipe(step=step))
    assert seen == [(i, NUM_STEPS, 1) for i in range(NUM_STEPS)]
    assert equal(weights(plain), weights(own))


def test_validation_batches_cover_the_split_again_and_again(make: Make) -> None:
    context, sizes, labels = make(max_epochs=2), [], []

    def step(updates: Updates, batches: Sequence[Batch]) -> float:
        batch = updates.next_validation_batch()
        sizes.append(len(batch))
        labels.append(batch.labels)
        return updates.update(batches)

    context.fit(tables_of(context), stage="first", recipe=Recipe(step=step))
    # 300 examples in batches of 128, begun anew after every third.
    assert sizes == [128, 128, 44] * 3 + [128]
    first, second = torch.cat(labels[:3]), torch.cat(labels[3:6])
    assert first.sum() == second.sum()
    assert not torch.equal(first, second)


class Counter:
    """A part of a stage that has a state."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.count = state_dict["count"]


def train_with_state(context: TrainingContext, stop_at: int | None) -> tuple[list[Tensor], int]:
    """Train with a step that depends on all that a step can have; return where it ends."""
    counter, tables = Counter(), tables_of(context)

    def step(updates: Updates, batches: Sequence[Batch]) -> float:
        if updates.step == stop_at:
            raise StoppedError
        counter.count += int(updates.next_validation_batch().labels.sum())
        loss = updates.update(batches)
        with torch.no_grad():
            for store in tables.engine.stores:
                store.weight.mul_(1 - 1e-4 * counter.count)
        return loss

    recipe = Recipe(step=step, take="last", extra={"counter": counter})
    context.fit(tables, stage="first", recipe=recipe)
    return weights(tables), counter.count


@pytest.mark.parametrize("stop_at", [1, 4, 5, 8])
def test_a_stage_with_its_own_step_resumes_bit_by_bit(make: Make, tmp_path, stop_at) -> None:
    with pytest.raises(StoppedError):
        train_with_state(make(), stop_at)
    resumed, count = train_with_state(make(), None)
    (tmp_path / "checkpoints").rename(tmp_path / "done")
    expected, expected_count = train_with_state(make(), None)
    assert count == expected_count
    assert equal(resumed, expected)


def test_what_is_done_before_an_evaluation_is_part_of_the_best_state(make: Make) -> None:
    context = make(max_epochs=1)
    tables = tables_of(context)

    def clear() -> None:
        for store in tables.engine.stores:
            store.weight.zero_()

    context.fit(tables, stage="first", recipe=Recipe(before_evaluation=clear))
    assert not any(weight.any() for weight in weights(tables))


def test_a_condition_ends_the_stage_after_an_evaluation(make: Make) -> None:
    context, answers = make(max_epochs=10), iter([False, False, True])
    recipe = Recipe(stop_when=lambda: next(answers))
    context.fit(tables_of(context), stage="first", recipe=recipe)
    assert context.fitted.progress.epoch == 3


def test_only_an_eligible_evaluation_may_become_the_best(make: Make) -> None:
    context, answers = make(max_epochs=3), iter([False, True, False])
    recipe = Recipe(eligible=lambda: next(answers))
    context.fit(tables_of(context), stage="first", recipe=recipe)
    assert context.fitted.progress.best_step == 2 * NUM_STEPS
    assert context.fitted.progress.bad_evaluations == 0


def test_the_last_state_is_left_where_it_is_asked_for(make: Make) -> None:
    context, states = make(max_epochs=3), []
    tables = tables_of(context)

    def eligible() -> bool:
        states.append(weights(tables))
        return len(states) == 1

    context.fit(tables, stage="first", recipe=Recipe(eligible=eligible, take="last"))
    assert equal(weights(tables), states[2])
    (again,) = (tables_of(context),)
    context.fit(again, stage="first", recipe=Recipe(take="best"))
    assert equal(weights(again), states[0])


def test_a_stage_may_be_shorter_than_the_trainer_s(make: Make) -> None:
    context = make(max_epochs=5)
    context.fit(tables_of(context), stage="first", recipe=Recipe(max_epochs=2))
    assert context.fitted.progress.epoch == 2


def test_what_is_computed_once_is_not_computed_by_a_resumed_run(make: Make) -> None:
    calls = []

    def compute() -> dict[str, object]:
        calls.append(1)
        return {"widths": [3, 4], "mask": torch.tensor([True, False])}

    for _ in range(2):
        found = make().once("search", compute)
        assert found["widths"] == [3, 4]
        assert found["mask"].tolist() == [True, False]
    assert len(calls) == 1


def test_rows_that_are_held_are_not_updated(make: Make) -> None:
    context = make()
    tables = tables_of(context)
    before = weights(tables)
    batch = next(context.prepared.batches("train", batch_size=64))
    scale = torch.ones((), requires_grad=True)
    with tables.hold_rows():
        (tables(batch.features).values() * scale).square().sum().backward()
    assert equal(weights(tables), before)
    assert scale.grad is not None
    tables(batch.features).values().square().sum().backward()
    assert not equal(weights(tables), before)


def test_rows_can_be_reset_and_copied(make: Make) -> None:
    context = make()
    tables = tables_of(context)
    batch = next(context.prepared.batches("train", batch_size=64))
    tables(batch.features).values().square().sum().backward()
    store = tables.engine.stores[0]
    name = store.group.tables[0].name
    state = dict(store.tensors())[f"optimizer.{name}.sum"]
    touched = state.abs().sum(dim=1).nonzero().view(-1)[:2]
    source, target = touched[:1], touched[1:]
    expected = tables.table(name)[source].clone(), state[source].clone()
    store.copy_rows(name, source, target)
    assert torch.equal(tables.table(name)[target], expected[0])
    assert torch.equal(state[target], expected[1])
    store.reset_rows(name, target)
    assert not state[target].any()
    assert state[source].any()


def test_a_run_stops_before_the_stage_that_it_was_told(make: Make) -> None:
    context = make(max_epochs=1)
    context.stop_before = "second"
    tables = tables_of(context)
    context.fit(tables, stage="first")
    with pytest.raises(StageReachedError, match=r"before stage 'second'.*To go on: again"):
        context.fit(tables, stage="second")


def test_what_one_process_has_to_do_first_is_named_to_several(make: Make, monkeypatch) -> None:
    monkeypatch.setattr(Ranks, "current", lambda: Ranks(0, 2))
    context = make()
    context.method, context.shared_stages = "OptEmbed", ("second",)
    way_out = r"not finished.*without torchrun and with stop_before=second first"
    with pytest.raises(ValueError, match=f"OptEmbed: stage 'first' is {way_out}"):
        context.fit(tables_of(context), stage="first")
    with pytest.raises(ValueError, match=f"OptEmbed: 'search' is {way_out}"):
        context.once("search", dict)


def test_stages_that_one_process_finished_are_loaded_by_several(make: Make, monkeypatch) -> None:
    alone = make(max_epochs=1)
    tables = tables_of(alone)
    alone.fit(tables, stage="first")
    loaded = make(max_epochs=1)
    loaded.shared_stages = ("second",)
    # What follows the load is collective.
    monkeypatch.setattr(loaded, "evaluate", lambda tables: {})
    monkeypatch.setattr(Ranks, "current", lambda: Ranks(0, 2))
    others = tables_of(loaded)
    loaded.fit(others, stage="first")
    assert equal(weights(others), weights(tables))
