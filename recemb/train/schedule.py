"""The learning rate over the steps of a run."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A factor on the base learning rates: a linear warm-up, then a decay.

    Attributes:
        warmup_steps: steps over which the factor rises linearly to 1; step 0 has 1/warmup_steps.
        decay: "none", "linear" or "cosine", from 1 at the end of the warm-up to `final_factor`.
        decay_steps: steps that the decay takes; afterwards the factor stays.
        final_factor: where the decay ends.

    Raises:
        ValueError: on a negative number, an unknown decay, or a decay without `decay_steps`.
    """

    warmup_steps: int = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    decay_steps: int = 0
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        if self.decay not in ("none", "linear", "cosine"):
            raise ValueError(f"schedule: decay must be none, linear or cosine, got '{self.decay}'")
        for field in ("warmup_steps", "decay_steps", "final_factor"):
            if getattr(self, field) < 0:
                raise ValueError(f"schedule: {field} must not be negative")
        if self.decay != "none" and self.decay_steps == 0:
            raise ValueError(f"schedule: decay '{self.decay}' needs decay_steps above 0")

    def factor(self, step: int) -> float:
        """Return the factor of the update number `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "none":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / self.decay_steps)
        remaining = 1.0 - done if self.decay == "linear" else (1.0 + math.cos(math.pi * done)) / 2
        return self.final_factor + (1.0 - self.final_factor) * remaining
