import math

import pytest

from recemb.train.schedule import Schedule


def test_no_schedule_is_one_throughout() -> None:
    assert [Schedule().factor(s) for s in (0, 1, 10**6)] == [1.0, 1.0, 1.0]


def test_warmup_rises_linearly_to_one() -> None:
    schedule = Schedule(warmup_steps=4)
    assert [schedule.factor(s) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_decay_ends_at_the_final_factor_and_stays() -> None:
    schedule = Schedule(decay="linear", decay_steps=10, final_factor=0.2)
    assert schedule.factor(5) == pytest.approx(0.6)
    assert schedule.factor(10) == pytest.approx(0.2)
    assert schedule.factor(999) == pytest.approx(0.2)


def test_cosine_decay_follows_the_cosine_after_the_warmup() -> None:
    schedule = Schedule(warmup_steps=2, decay="cosine", decay_steps=8)
    assert schedule.factor(4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_a_decay_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="needs decay_steps"):
        Schedule(decay="linear")


def test_an_unknown_decay_is_refused() -> None:
    with pytest.raises(ValueError, match="none, linear or cosine"):
        Schedule(decay="step")
