"""DeepLight: magnitude pruning while training, to a share that rises with the updates.

After a warm-up without pruning, every 10 updates the smallest values are set to zero, so that of
all values the share

    rate(t) = S (1 - 0.99^(t / c))

is zero after update t of the second stage, where S is the final share. What was set to zero is not
masked: it may grow again until the next pruning.

Source: Deng et al., "DeepLight: Deep Lightweight Feature Interactions for Accelerating CTR
Predictions in Ad Serving", WSDM 2021, arXiv 2002.06987, section 3.4 and the authors' code, where c
is 100 at batches of 2048 of Criteo. The pruning of embeddings alone: the authors also prune the
layers of the network and of field pairs, which are no tables. Departures: first-order weights are
pruned too, in the same share, or no budget below theirs could be kept; c follows the length of the
stage unless it is given; S follows from the budget.
"""

import math
from collections.abc import Sequence
from typing import Any

from recemb.data.batch import Batch
from recemb.methods.pruned import (
    NEVER_STOP,
    PrunedTables,
    PruningMethod,
    table_options,
)
from recemb.tables.method import Context
from recemb.tables.recipe import Recipe, Updates

_BASE = 0.99
_RAMP = 0.5
"""The part of the stage after which the final share is reached, where `ramp_steps` is not given."""


class PruningSchedule:
    """Which share of the values is to be zero after an update.

    Attributes:
        final: S.
        ramp_steps: c.
        tolerance: how near to S the share must be for a state to be a result.

    Args:
        final: S.
        ramp_steps: c; None for what reaches S, to within `tolerance`, after half of `total_steps`.
        tolerance: see above.
        total_steps: updates of the stage.

    Raises:
        ValueError: if S is not reached within `total_steps`.
    """

    def __init__(
        self, *, final: float, ramp_steps: float | None, tolerance: float, total_steps: int
    ) -> None:
        self.final = final
        self.tolerance = tolerance
        # S 0.99^(t / c) = tolerance
        lengths = math.log(min(1.0, tolerance / final)) / math.log(_BASE) if final else 0.0
        if ramp_steps is None:
            ramp_steps = _RAMP * total_steps / lengths if lengths else 1.0
        self.ramp_steps = ramp_steps
        if not self.is_final(total_steps):
            raise ValueError(
                f"DeepLight: with ramp_steps={ramp_steps:g} the final share {final:.4f} is reached "
                f"after {math.ceil(lengths * ramp_steps):,} updates, but the stage has "
                f"{total_steps:,}; lower ramp_steps, leave it null, or raise trainer.max_epochs"
            )

    def rate(self, step: int) -> float:
        """Return the share of values that are zero after `step` updates."""
        return self.final * (1 - math.pow(_BASE, step / self.ramp_steps))

    def is_final(self, step: int) -> bool:
        """Return whether the final share is reached, to within the tolerance."""
        # ramp_steps may have been solved for equality, which rounding misses.
        return self.final - self.rate(step) <= self.tolerance * (1 + 1e-9)


class Pruner:
    """Prunes tables in a fit, see `Recipe`.

    Attributes:
        step_count: updates so far.

    Args:
        method: says how.
        tables: what to prune, as they are when pruning begins: they decide the final share.
        ctx: says what the budget is.
    """

    def __init__(self, method: "DeepLight", tables: PrunedTables, ctx: Context) -> None:
        self.step_count = 0
        self._method = method
        self._tables = tables
        self._ctx = ctx
        self._final = 1 - method.cut(tables.ranking(), ctx).share
        self._total_steps: int | None = None

    @property
    def schedule(self) -> PruningSchedule:
        """Return the schedule, which is known from the first update on.

        Raises:
            ValueError: if the final share is not reached within the stage.
        """
        assert self._total_steps is not None
        return PruningSchedule(
            final=self._final,
            ramp_steps=self._method.ramp_steps,
            tolerance=self._method.tolerance,
            total_steps=self._total_steps,
        )

    def step(self, updates: Updates, batches: Sequence[Batch]) -> float:
        """Make an update, and prune after each tenth."""
        self._total_steps = updates.total_steps
        schedule = self.schedule
        loss = updates.update(batches)
        self.step_count += 1
        if self.step_count % self._method.prune_every_steps == 0:
            ranking = self._tables.ranking()
            self._tables.prune(ranking, ranking.cut(1 - schedule.rate(self.step_count)))
        return loss

    def before_evaluation(self) -> None:
        """Prune what has grown; to the budget, to a byte, once the final share is reached."""
        ranking = self._tables.ranking()
        if self.is_eligible():
            cut = self._method.cut(ranking, self._ctx)
        else:
            cut = ranking.cut(1 - self.schedule.rate(self.step_count))
        self._tables.prune(ranking, cut)

    def is_eligible(self) -> bool:
        """Return whether the tables have their final share of zeros."""
        return self.schedule.is_final(self.step_count)

    def state_dict(self) -> dict[str, int | None]:
        """Return the number of updates so far, and of the stage."""
        return {"step_count": self.step_count, "total_steps": self._total_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state."""
        self.step_count = state_dict["step_count"]
        self._total_steps = state_dict["total_steps"]


class DeepLight(PruningMethod):
    """Warm-up, then pruning while training goes on with the same optimizer.

    A pruning ranks all values, by a few passes over all tables, every `prune_every_steps` updates.

    The budget is kept to a byte: the tables are pruned before every evaluation, so that what is
    scored is what is served, and only states at the final share may become the best one.

    Args:
        warmup_epochs: epochs without pruning, beside the trainer's `max_epochs` with it.
        prune_every_steps: updates between prunings.
        ramp_steps: c; None for what reaches the final share after half of the stage. The authors'
            100 takes 68,730 updates to come within 0.001 of the final share.
        tolerance: how near to the final share it must be for a state to be a result.
        sparsity: share of values that go where there is no budget.
        init_std: see `PruningMethod`.

    Raises:
        ValueError: on a number outside its range.
    """

    stages = ("warmup", "prune")
    why_unshared = "values are ranked over all rows, which no process has, while it trains"

    def __init__(
        self,
        *,
        warmup_epochs: int = 2,
        prune_every_steps: int = 10,
        ramp_steps: float | None = None,
        tolerance: float = 1e-3,
        sparsity: float = 0.4,
        init_std: float | None = None,
    ) -> None:
        super().__init__(init_std=init_std)
        if warmup_epochs < 1 or prune_every_steps < 1:
            raise ValueError(
                "DeepLight: warmup_epochs and prune_every_steps must be at least 1, got "
                f"{warmup_epochs} and {prune_every_steps}"
            )
        if not 0 <= sparsity < 1 or not 0 < tolerance < 1:
            raise ValueError(
                "DeepLight: sparsity must be in [0, 1) and tolerance in (0, 1), got "
                f"{sparsity} and {tolerance}"
            )
        if ramp_steps is not None and not ramp_steps > 0:
            raise ValueError(f"DeepLight: ramp_steps must be positive or null, got {ramp_steps}")
        self.warmup_epochs = warmup_epochs
        self.prune_every_steps = prune_every_steps
        self.ramp_steps = ramp_steps
        self.tolerance = tolerance
        self.sparsity = sparsity

    def share_without_budget(self) -> float:
        """Return the share of values that stay where no budget says it."""
        return 1 - self.sparsity

    def run(self, ctx: Context) -> PrunedTables:
        """Return pruned tables."""
        self.feasible_plan(ctx.specs, ctx.id_counts, ctx.budget)
        tables = PrunedTables(ctx.specs, initial=self.initial(ctx.specs), **table_options(ctx))
        warmup = Recipe(max_epochs=self.warmup_epochs, patience=NEVER_STOP, take="last")
        ctx.fit(tables, stage="warmup", recipe=warmup)
        pruner = Pruner(self, tables, ctx)
        recipe = Recipe(
            model="keep",
            optimizer="keep",
            step=pruner.step,
            before_evaluation=pruner.before_evaluation,
            eligible=pruner.is_eligible,
            extra={"pruner": pruner},
        )
        ctx.fit(tables, stage="prune", recipe=recipe)
        return tables
