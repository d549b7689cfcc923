"""Where a fit stands: everything that a resumed fit needs beside weights and optimizer state."""

import math
import signal
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, Self

from recemb.train.settings import LOWER_IS_BETTER, TrainerSettings


class InterruptedFitError(Exception):
    """A fit was told to stop (Ctrl-C, SIGTERM) and has saved itself."""


class StageReachedError(Exception):
    """A run came to the stage before which it was to stop; everything before that is saved."""


@dataclass(kw_only=True)
class Progress:
    """The position and the memory of a fit, after `step` updates.

    Attributes:
        epoch: passes completed.
        batch: batches of the current pass that are behind us.
        step: updates made.
        examples: examples trained on.
        loss_sum: sum of the training loss over the updates since the last log row.
        loss_steps: number of those updates.
        evaluated_step: the update after which the last evaluation ran.
        best_step: the update after which the monitored metric was best.
        best_value: its value then.
        first_epoch_value: its value at the end of the first epoch.
        has_warned: whether the warning about a fall after the first epoch was given.
        bad_evaluations: evaluations in a row without improvement.
        plateau_factor: factor on the learning rates from plateaus so far.
        training_seconds: wall time of the updates, evaluation and saving left out.
        is_finished: whether training has ended.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    examples: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    evaluated_step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    first_epoch_value: float | None = None
    has_warned: bool = False
    bad_evaluations: int = 0
    plateau_factor: float = 1.0
    training_seconds: float = 0.0
    is_finished: bool = False

    def note_value(self, value: float, settings: TrainerSettings) -> bool:
        """Note what an evaluation after `step` found; return whether it is the best so far.

        One that is not moves the plateau and the patience. What is not a number is the best only
        while there is nothing else.
        """
        if math.isnan(value):
            warnings.warn(
                f"{settings.monitor} is not a number (AUC needs clicks and non-clicks in the "
                "validation split), so this evaluation is no better than others; set "
                "trainer.monitor to another metric, such as val/logloss",
                stacklevel=2,
            )
        best, gain = self.best_value, math.inf
        if best is not None and not (math.isnan(best) and not math.isnan(value)):
            gain = best - value if LOWER_IS_BETTER[settings.monitor] else value - best
        if gain >= settings.min_improvement:
            self.best_step, self.best_value, self.bad_evaluations = self.step, value, 0
            return True
        self.bad_evaluations += 1
        if self.bad_evaluations >= settings.lr_plateau_patience:
            self.plateau_factor *= settings.lr_plateau_factor
        if self.bad_evaluations >= settings.patience:
            self.is_finished = True
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Return the progress that `to_dict` wrote."""
        return cls(**state)


class StopSignals:
    """Within this context the first SIGINT or SIGTERM is noted; a second SIGINT interrupts at once.

    Outside the main thread, where Python installs no handlers, nothing is noted.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
