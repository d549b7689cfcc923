"""What evaluations without improvement do to learning rate and patience."""

import math

import pytest

from recemb.train.progress import Progress
from recemb.train.settings import TrainerSettings


def factors(num_evaluations: int, **settings: float) -> list[float]:
    """Return the plateau factor after each of some evaluations without improvement."""
    progress, found = Progress(best_value=0.8), []
    for _ in range(num_evaluations):
        progress.note_value(0.7, TrainerSettings(lr_plateau_factor=0.5, **settings))
        found.append(progress.plateau_factor)
    return found


def test_every_evaluation_without_improvement_cuts_the_learning_rate() -> None:
    assert factors(3) == [0.5, 0.25, 0.125]


def test_the_plateau_s_patience_lets_the_first_ones_pass() -> None:
    assert factors(4, lr_plateau_patience=3) == [1, 1, 0.5, 0.25]


def test_training_ends_when_patience_does() -> None:
    progress, settings = Progress(best_value=0.8), TrainerSettings(patience=2)
    assert not progress.note_value(0.7, settings)
    assert not progress.is_finished
    assert not progress.note_value(0.8, settings)
    assert progress.is_finished


def test_the_best_value_is_noted_with_its_step() -> None:
    progress, settings = Progress(step=3, bad_evaluations=1), TrainerSettings()
    assert progress.note_value(0.6, settings)
    assert (progress.best_step, progress.best_value, progress.bad_evaluations) == (3, 0.6, 0)


def test_a_loss_improves_by_falling() -> None:
    progress, settings = Progress(best_value=0.5), TrainerSettings(monitor="val/logloss")
    assert not progress.note_value(0.6, settings)
    assert progress.note_value(0.4, settings)


def test_what_is_no_number_is_the_best_only_while_there_is_nothing_else() -> None:
    progress, settings = Progress(step=1), TrainerSettings(patience=9)
    with pytest.warns(UserWarning, match="val/auc is not a number"):
        assert progress.note_value(math.nan, settings)
    with pytest.warns(UserWarning, match="val/auc is not a number"):
        assert not progress.note_value(math.nan, settings)
    assert progress.note_value(0.6, settings)
    with pytest.warns(UserWarning, match="val/auc is not a number"):
        assert not progress.note_value(math.nan, settings)
    assert (progress.best_value, progress.bad_evaluations) == (0.6, 1)


def test_no_patience_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.lr_plateau_patience must be at least 1, got 0"):
        TrainerSettings(lr_plateau_patience=0)
