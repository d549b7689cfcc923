"""What evaluations without improvement do to learning rate and patience."""

import pytest

from recemb.train.progress import Progress
from recemb.train.settings import TrainerSettings


def factors(num_evaluations: int, **settings: float) -> list[float]:
    """Return the plateau factor after each of some evaluations without improvement."""
    progress, found = Progress(), []
    for _ in range(num_evaluations):
        progress.note_no_improvement(TrainerSettings(lr_plateau_factor=0.5, **settings))
        found.append(progress.plateau_factor)
    return found


def test_every_evaluation_without_improvement_cuts_the_learning_rate() -> None:
    assert factors(3) == [0.5, 0.25, 0.125]


def test_the_plateau_s_patience_lets_the_first_ones_pass() -> None:
    assert factors(4, lr_plateau_patience=3) == [1, 1, 0.5, 0.25]


def test_training_ends_when_patience_does() -> None:
    progress, settings = Progress(), TrainerSettings(patience=2)
    progress.note_no_improvement(settings)
    assert not progress.is_finished
    progress.note_no_improvement(settings)
    assert progress.is_finished


def test_no_patience_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.lr_plateau_patience must be at least 1, got 0"):
        TrainerSettings(lr_plateau_patience=0)
