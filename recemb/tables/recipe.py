"""How a stage is fitted, and what a method's own step may ask of the fit."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from recemb.data.batch import Batch

Keep = Literal["fresh", "keep"]
Take = Literal["best", "last"]


class Stateful(Protocol):
    """What a stage saves and restores beside tables and model."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take up a state."""
        ...


class Updates(Protocol):
    """What a method's own step may ask of the fit that calls it."""

    @property
    def step(self) -> int:
        """Return the number of updates made so far."""
        ...

    @property
    def total_steps(self) -> int:
        """Return the number of updates after which the fit ends if nothing stops it before."""
        ...

    def update(self, batches: Sequence[Batch]) -> float:
        """Make one ordinary update of rows and model; return the mean training loss."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean log loss of a batch, a scalar; its backward pass updates the rows.

        Within `tables.hold_rows()` it does not, whatever else requires grad.
        """
        ...

    def hold_model(self) -> AbstractContextManager[None]:
        """Within this context losses leave no trace in the model: its running statistics stay.

        For second passes over a batch.
        """
        ...

    def next_validation_batch(self) -> Batch:
        """Return the next batch of an endless, shuffled pass over the validation split."""
        ...


Step = Callable[[Updates, Sequence[Batch]], float]
"""An update from some batches (one, unless gradients are accumulated); returns the mean loss."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a stage is fitted where it differs from an ordinary fit.

    Attributes:
        model: whether to begin with a fresh ranking model or keep the last stage's.
        optimizer: whether the dense optimizer, and the rows' state in the tables, begin afresh or
            are those of the last stage; "keep" needs a model that is kept, of the same shape.
        step: makes an update; None for the ordinary one.
        before_evaluation: called before every evaluation, to bring the tables into the state in
            which they would be served.
        stop_when: asked after every evaluation; True ends the stage.
        eligible: asked after every evaluation; whether it may become the best one.
        take: which state the stage leaves: that of the best evaluation or the last one.
        max_epochs: instead of the trainer's setting; None keeps that.
        patience: likewise.
        extra: what the stage's checkpoints hold beside tables and model, by name.

    Raises:
        ValueError: if the optimizer is to be kept and the model is not.
    """

    model: Keep = "fresh"
    optimizer: Keep = "fresh"
    step: Step | None = None
    before_evaluation: Callable[[], None] | None = None
    stop_when: Callable[[], bool] | None = None
    eligible: Callable[[], bool] | None = None
    take: Take = "best"
    max_epochs: int | None = None
    patience: int | None = None
    extra: Mapping[str, Stateful] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.optimizer == "keep" and self.model == "fresh":
            raise ValueError(
                "Recipe: optimizer='keep' needs model='keep'; its state is the model's"
            )
