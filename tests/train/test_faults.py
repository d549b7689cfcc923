"""What becomes of a fit whose numbers or whose disk give out, and of one that others resume."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recemb.checkpoint import OtherTablesError, read_weights
from recemb.checkpoint.store import CheckpointName, CheckpointStore
from recemb.data.batch import Batch
from recemb.tables.full import full_tables
from recemb.tables.planned import PlannedTables
from recemb.tables.recipe import Recipe, Updates
from recemb.train.context import TrainingContext
from tests.full_disk import files_of_at_most

Make = Callable[..., TrainingContext]
NUM_STEPS = 5
"""Batches of an epoch."""


def tables_of(context: TrainingContext, seed: int = 1) -> PlannedTables:
    return full_tables(context.specs, optimizer=context.optimizer, seed=seed)


def poison(tables: PlannedTables, value: float, *, after: int) -> Recipe:
    """Return a recipe that overwrites the rows of feature c3 after an update."""

    def step(updates: Updates, batches: Sequence[Batch]) -> float:
        loss = updates.update(batches)
        if updates.step + 1 == after:
            tables.table("C3").detach().fill_(value)
        return loss

    return Recipe(step=step)


def saved_steps(context: TrainingContext) -> list[int]:
    store = CheckpointStore(context.checkpoints / "first")
    for name in store.names("step"):
        assert all(bool(t.isfinite().all()) for t in store.load(name)["tables"].values())
    return [name.step for name in store.names("step")]


def test_a_loss_that_is_not_finite_names_update_and_feature_and_keeps_the_last_good_state(
    make: Make,
) -> None:
    context = make(checkpoint_every_steps=2)
    tables = tables_of(context)
    # Finite itself; what the network makes of it is not.
    recipe = poison(tables, 3e38, after=3)
    message = (
        r"the training loss is (nan|inf) at update 4, which was not made; feature '.*' \(.*\) has "
        r"the largest gradient, feature 'C3' \(.*\) the largest vectors; the last good checkpoint, "
        r".*/first/step-0000000002, is kept\. Lower"
    )
    with pytest.raises(FloatingPointError, match=message):
        context.fit(tables, stage="first", recipe=recipe)
    assert saved_steps(context) == [2]
    # The update was not made: no other feature's rows have become NaN.
    others = (store.weight for store in tables.engine.stores)
    assert all(bool(rows.isfinite().all()) for rows in others)


def test_a_state_with_rows_that_are_not_finite_is_not_saved(make: Make) -> None:
    context = make(checkpoint_every_steps=2)
    tables = tables_of(context)
    message = r"C3\.weight is not finite after update 4, which was not saved; .*step-0000000002, is"
    with pytest.raises(FloatingPointError, match=message):
        context.fit(tables, stage="first", recipe=poison(tables, float("nan"), after=4))
    assert saved_steps(context) == [2]


def test_the_first_update_s_failure_says_that_there_is_no_checkpoint(make: Make) -> None:
    context = make()
    tables = tables_of(context)
    tables.table("C3").detach().fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"at update 1, .*'C3'.* no checkpoint had been"):
        context.fit(tables, stage="first")


def test_a_fit_whose_last_checkpoint_is_damaged_resumes_from_the_one_before(make: Make) -> None:
    undisturbed = make(stages=("second",), max_epochs=1)
    expected = tables_of(undisturbed)
    undisturbed.fit(expected, stage="second")

    context = make(stages=("first",), max_epochs=1)
    with pytest.raises(StoppedError):
        context.fit(tables_of(context), stage="first", recipe=stop_at(4))
    store = CheckpointStore(context.checkpoints / "first")
    newest = store.folder / str(store.names("step")[-1])
    (newest / "manifest.json").write_bytes(b"{")
    context = make(stages=("first",), max_epochs=1)
    tables = tables_of(context)
    with pytest.warns(UserWarning, match=f"damaged checkpoint: .*{newest.name}.*manifest"):
        context.fit(tables, stage="first")
    assert equal(tables, expected)


def test_a_damaged_checkpoint_that_was_passed_over_does_not_outlive_its_successors(
    make: Make,
) -> None:
    context = make(max_epochs=1, keep_checkpoints=1)
    with pytest.raises(StoppedError):
        context.fit(tables_of(context), stage="first", recipe=stop_at(3))
    store = CheckpointStore(context.checkpoints / "first")
    (newest,) = store.names("step")
    # As if update 4 had been saved, and then damaged.
    shutil.copytree(store.folder / str(newest), store.folder / str(CheckpointName("step", 4)))
    (store.folder / str(CheckpointName("step", 4)) / "manifest.json").write_bytes(b"")
    context = make(max_epochs=1, keep_checkpoints=1, checkpoint_every_steps=None)
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        context.fit(tables_of(context), stage="first")
    assert saved_steps(context) == [5]
    context = make(max_epochs=1, keep_checkpoints=1)
    context.fit(tables_of(context), stage="first")


def test_a_stage_of_which_every_checkpoint_is_damaged_is_not_begun_afresh(make: Make) -> None:
    context = make(max_epochs=1)
    with pytest.raises(StoppedError):
        context.fit(tables_of(context), stage="first", recipe=stop_at(2))
    for path in (context.checkpoints / "first").glob("step-*/manifest.json"):
        path.unlink()
    context = make(max_epochs=1)
    with (
        pytest.warns(UserWarning, match="damaged checkpoint"),
        pytest.raises(ValueError, match=r"every checkpoint in .*first is damaged; to begin afresh"),
    ):
        context.fit(tables_of(context), stage="first")


class StoppedError(Exception):
    """Stands for a process that was killed."""


def stop_at(step: int) -> Recipe:
    def stop(updates: Updates, batches: Sequence[Batch]) -> float:
        if updates.step == step:
            raise StoppedError
        return updates.update(batches)

    return Recipe(step=stop)


def equal(left: PlannedTables, right: PlannedTables) -> bool:
    others = right.state_dict()
    return all(torch.equal(its, others[name]) for name, its in left.state_dict().items())


def test_checkpoints_in_the_background_end_in_the_same_bits(make: Make) -> None:
    found: list[PlannedTables] = []
    for stage, in_background in (("first", False), ("second", True)):
        context = make(max_epochs=1, async_checkpoint=in_background)
        found.append(tables_of(context))
        context.fit(found[-1], stage=stage)
    assert equal(*found)
    first, second = (CheckpointStore(context.checkpoints / s) for s in ("first", "second"))
    for kind in ("step", "best"):
        assert first.names(kind) == second.names(kind)
        for name in first.names(kind):
            assert_same(first.load(name), second.load(name), str(name))


def assert_same(left: object, right: object, where: str) -> None:
    if isinstance(left, dict) and isinstance(right, dict):
        assert left.keys() == right.keys(), where
        for key in left.keys() - {"training_seconds", "log_bytes"}:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, Tensor) and isinstance(right, Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


def test_a_fit_that_saves_in_the_background_resumes_in_the_same_bits(make: Make) -> None:
    undisturbed = make(stages=("second",), max_epochs=1)
    expected = tables_of(undisturbed)
    undisturbed.fit(expected, stage="second")
    for step in (2, 4):
        context = make(max_epochs=1, async_checkpoint=True)
        with pytest.raises(StoppedError):
            context.fit(tables_of(context), stage="first", recipe=stop_at(step))
    context = make(max_epochs=1, async_checkpoint=True)
    tables = tables_of(context)
    context.fit(tables, stage="first")
    assert equal(tables, expected)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_ends_a_fit_which_goes_on_when_there_is_space(
    make: Make, in_background: bool
) -> None:
    undisturbed = make(stages=("second",), max_epochs=1)
    expected = tables_of(undisturbed)
    undisturbed.fit(expected, stage="second")

    context = make(max_epochs=1, async_checkpoint=in_background)
    with pytest.raises(StoppedError):
        context.fit(tables_of(context), stage="first", recipe=stop_at(3))
    context = make(max_epochs=1, async_checkpoint=in_background)
    message = r"could not be written .* are free\); free some space .*earlier checkpoints are"
    with files_of_at_most(4000), pytest.raises(OSError, match=message):
        context.fit(tables_of(context), stage="first")
    assert saved_steps(context) == [2, 3]
    context = make(max_epochs=1, async_checkpoint=in_background)
    tables = tables_of(context)
    context.fit(tables, stage="first")
    assert equal(tables, expected)


def test_other_tables_do_not_resume_a_fit(make: Make) -> None:
    context = make(max_epochs=1)
    context.fit(tables_of(context), stage="first")
    context = make(max_epochs=1)
    tables = full_tables(context.specs[::-1], optimizer=context.optimizer)
    with pytest.raises(OtherTablesError, match=r"step-0000000005 was written by other tables"):
        context.fit(tables, stage="first")


def test_damaged_best_weights_are_an_error_that_says_what_to_do(make: Make) -> None:
    context = make(max_epochs=1)
    context.fit(tables_of(context), stage="first")
    store = CheckpointStore(context.checkpoints / "first")
    damaged = store.folder / str(CheckpointName("best", 5)) / "manifest.json"
    damaged.write_text("")
    context = make(max_epochs=1)
    with pytest.raises(ValueError, match=r"best weights cannot be read: .*best-0000000005.*remove"):
        context.fit(tables_of(context), stage="first")


def test_a_run_s_checkpoint_gives_plain_tensors(make: Make) -> None:
    context = make(max_epochs=1)
    tables = tables_of(context)
    context.fit(tables, stage="first", recipe=Recipe(take="last"))
    folder: Path = context.checkpoints / "first" / "step-0000000005"
    weights = read_weights(folder)
    assert list(weights) == [spec.name for spec in context.specs]
    assert all(torch.equal(rows, tables.table(name)) for name, rows in weights.items())
