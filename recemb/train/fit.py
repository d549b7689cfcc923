"""One fit: batches to updates, evaluation, early stopping, checkpoints, exact resume.

A fit that is killed and started again on the same folder ends with bit-identical weights,
optimizer state and `metrics.jsonl`: the order of batches is a function of (seed, epoch), every
checkpoint holds the random state, and `metrics.jsonl` is cut back to its length when that
checkpoint was written.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recemb.checkpoint.store import Checkpoints
from recemb.data.batch import Batch
from recemb.train.batch_loss import BatchLoss
from recemb.train.blow_up import worst_features
from recemb.train.cuda_random import cuda_states, set_cuda_states
from recemb.train.evaluation import score_split
from recemb.train.fit_plan import FitPlan
from recemb.train.log import RunLog
from recemb.train.progress import InterruptedFitError, Progress, StopSignals
from recemb.train.ranks import Ranks
from recemb.train.saved_states import SavedStates
from recemb.train.settings import LOWER_IS_BETTER
from recemb.train.validation import ValidationStream

_FALL_WARNING = (
    "{monitor} fell from {first:.5f} after the first epoch to {now:.5f}: click models over-fit "
    "their embeddings from the second epoch on. What to try: trainer.max_epochs=1; "
    "trainer.eval_every_steps=N to stop inside an epoch; a smaller "
    "optimizer.tables.learning_rate; optimizer.tables.weight_decay=1e-6 or more; dropout in the "
    "model; a higher minimum count in the data. The best checkpoint is kept either way."
)


class Fit:
    """A fit on one process, or this process's part of one; `run` does it, from its checkpoints on.

    Ranks share out every batch, so that updates are those of one process: gradients and losses are
    sums over all ranks, and rows live wherever the tables keep them.

    Args:
        plan: what to work on.
        store: where checkpoints go.
        log: where rows go.

    Attributes:
        progress: where the fit stands.
        log_bytes: length of the log at the last checkpoint.
        batch_loss: what is minimised.
    """

    def __init__(self, plan: FitPlan, *, store: Checkpoints, log: RunLog) -> None:
        self.plan = plan
        self.settings = plan.settings
        identity = {"method": plan.method, "model": type(plan.model).__name__}
        self._states = SavedStates(
            store,
            identity={**identity, **plan.tables.identity()},
            keep=plan.settings.keep_checkpoints,
        )
        self.log = log
        self.progress = Progress()
        self.device = plan.settings.resolve_device()
        self.settings.warn_if_bf16_is_slow(self.device)
        parameters = [*plan.model.parameters(), *plan.tables.dense_parameters()]
        self.optimizer = plan.dense_optimizer(parameters) if parameters else None
        self._clipped = parameters
        self._base_rates = [g["lr"] for g in self.optimizer.param_groups] if self.optimizer else []
        self.batch_loss = BatchLoss(plan.model, settings=plan.settings, device=self.device)
        self._ranks = Ranks.current()
        self._is_stopping = False
        self._is_new_best = False
        self._last_metrics: dict[str, float] = {}
        self._validation = ValidationStream(
            plan.prepared, batch_size=self.settings.batch_size, seed=plan.seed
        )
        self.log_bytes = plan.log_start_bytes

    @property
    def step(self) -> int:
        """Return the number of updates made so far."""
        return self.progress.step

    @property
    def total_steps(self) -> int:
        """Return the number of updates after which the fit ends if nothing stops it before."""
        settings = self.settings
        batches = self.plan.prepared.num_batches("train", batch_size=settings.batch_size)
        total = settings.max_epochs * math.ceil(batches / settings.accumulate_batches)
        return total if settings.max_steps is None else min(total, settings.max_steps)

    def optimizer_state(self) -> Mapping[str, Any] | None:
        """Return the state of the dense optimizer at the end; None if there is none."""
        return None if self.optimizer is None else self.optimizer.state_dict()

    def next_validation_batch(self) -> Batch:
        """Return the next batch of an endless, shuffled pass over the validation split."""
        return self._validation.next().to(self.device)

    def run(self) -> Progress:
        """Train to the end, leave the best weights in the tables and the model, say where it stood.

        Raises:
            InterruptedFitError: after a signal; the state is saved.
            FloatingPointError: when the training loss is not finite.
            ValueError: if the plan wants it finished, and it was not.
        """
        try:
            self._resume()
            if self.plan.unfinished is not None and not self.progress.is_finished:
                raise ValueError(self.plan.unfinished)
            with StopSignals() as signals:
                while not self.progress.is_finished:
                    self._epoch(signals)
            self._restore_best()
        finally:
            self._states.finish()
        return self.progress

    def _epoch(self, signals: StopSignals) -> None:
        plan, settings, progress = self.plan, self.settings, self.progress
        batches = plan.prepared.batches(
            "train",
            batch_size=settings.batch_size,
            seed=plan.seed,
            epoch=progress.epoch,
            shuffle=True,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            first_batch=progress.batch,
        )
        total = plan.prepared.num_batches("train", batch_size=settings.batch_size)
        self.log.start_epoch(
            f"{plan.title}epoch {progress.epoch + 1}/{settings.max_epochs}",
            total=math.ceil(total / settings.accumulate_batches),
            done=progress.batch // settings.accumulate_batches,
        )
        self.log.show(self._last_metrics)
        with contextlib.closing(batches):
            started = time.perf_counter()
            for group in _groups(batches, settings.accumulate_batches):
                self._update(group, signals)
                progress.training_seconds += time.perf_counter() - started
                self._after_update(signals)
                if progress.is_finished:
                    return
                started = time.perf_counter()
        progress.epoch, progress.batch = progress.epoch + 1, 0
        self._after_epoch()

    def _update(self, group: list[Batch], signals: StopSignals) -> None:
        """Make one update, the method's or the ordinary one, and count it."""
        tables, progress = self.plan.tables, self.progress
        tables.train()
        self.plan.model.train()
        self._set_learning_rates()
        batches = [batch.to(self.device) for batch in group]
        step = self.plan.recipe.step
        part = self.update(batches) if step is None else step(self, batches)
        num_examples, is_told = sum(len(batch) for batch in group), signals.received is not None
        loss, examples, told = self._ranks.sums(part, num_examples, is_told)
        self._is_stopping = told > 0
        progress.batch += len(group)
        progress.step += 1
        self._ranks.note_step(progress.step)
        progress.examples += round(examples)
        progress.loss_sum += loss
        progress.loss_steps += 1
        self._check_loss(loss)

    def update(self, batches: Sequence[Batch]) -> float:
        """Make one update from the gradients of all batches; return this rank's part of the loss.

        The parts of all ranks add up to the mean loss.
        """
        tables = self.plan.tables
        (num_examples,) = self._ranks.sums(sum(len(batch) for batch in batches))
        total = 0.0
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        for position, batch in enumerate(batches):
            is_last = position == len(batches) - 1
            tables.defer_updates(not is_last)
            loss = self._batch_loss(batch) / num_examples
            if is_last:
                loss = loss + tables.penalty() / self._ranks.world_size
            torch.autograd.backward(loss)
            total += float(loss.detach())
        if self.optimizer is not None:
            self._ranks.sum_gradients(self._clipped)
            if self.settings.max_gradient_norm is not None:
                nn.utils.clip_grad_norm_(self._clipped, self.settings.max_gradient_norm)
            self.optimizer.step()
        return total

    def loss(self, batch: Batch) -> Tensor:
        """Return the model's mean loss of a batch, a scalar; its backward pass updates the rows."""
        return self._batch_loss(batch) / len(batch)

    @contextlib.contextmanager
    def hold_model(self) -> Iterator[None]:
        """Within this context losses leave no trace in the model: its running statistics stay."""
        held = [(buffer, buffer.clone()) for buffer in self.plan.model.buffers()]
        try:
            yield
        finally:
            for buffer, before in held:
                buffer.copy_(before)

    def _batch_loss(self, batch: Batch) -> Tensor:
        """Return the model's summed loss of a batch.

        Raises:
            FloatingPointError: if it is not finite, before anything is updated.
        """
        loss = self.batch_loss(self.plan.tables, batch)
        # Before the backward pass, which would write what is not finite into every row it reaches.
        (value,) = self._ranks.sums(float(loss.detach()))
        if not math.isfinite(value):
            worst = worst_features(self.plan.tables, lambda its: self.batch_loss(its, batch))
            raise FloatingPointError(
                f"the training loss is {value} at update {self.progress.step + 1}, which was not "
                f"made; {worst or 'no feature has a gradient'}; {self._states.way_out()}"
            )
        return loss

    def _check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss} after update {self.progress.step}; "
                f"{self._states.way_out()}"
            )

    def _set_learning_rates(self) -> None:
        factor = self.settings.schedule.factor(self.progress.step) * self.progress.plateau_factor
        self.plan.tables.set_learning_rate(self.plan.table_learning_rate * factor)
        if self.optimizer is not None:
            for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
                group["lr"] = rate * factor

    def _after_update(self, signals: StopSignals) -> None:
        settings, progress = self.settings, self.progress
        self.log.advance()
        if progress.step % settings.log_every_steps == 0:
            self._log_loss()
        at_limit = settings.max_steps is not None and progress.step >= settings.max_steps
        if at_limit or _is_due(progress.step, settings.eval_every_steps):
            self._evaluate()
            progress.is_finished |= at_limit
            self._save()
        elif self._is_stopping or _is_due(progress.step, settings.checkpoint_every_steps):
            self._save()
        if self._is_stopping and not progress.is_finished:
            self.log.end_epoch()
            self._states.finish()
            name = signals.received.name if signals.received else "another process's signal"
            raise InterruptedFitError(
                f"stopped by {name} after update {progress.step}; everything is "
                f"saved. To go on: {self.plan.resume_command}"
            )

    def _after_epoch(self) -> None:
        progress = self.progress
        if progress.evaluated_step != progress.step:
            self._evaluate()
        value = self._last_metrics.get(self.settings.monitor)
        if progress.epoch == 1:
            progress.first_epoch_value = value
        elif value is not None:
            self._warn_of_fall(value)
        progress.is_finished |= progress.epoch >= self.settings.max_epochs
        self._save()
        self.log.end_epoch()

    def _warn_of_fall(self, value: float) -> None:
        progress, monitor = self.progress, self.settings.monitor
        first = progress.first_epoch_value
        if first is None or progress.has_warned:
            return
        if (value > first) if LOWER_IS_BETTER[monitor] else (value < first):
            progress.has_warned = True
            self.log.message(
                "warning: " + _FALL_WARNING.format(monitor=monitor, first=first, now=value)
            )

    def _log_loss(self) -> None:
        progress = self.progress
        mean = progress.loss_sum / progress.loss_steps
        progress.loss_sum, progress.loss_steps = 0.0, 0
        self.log.row(progress.step, progress.epoch, {"train/loss": mean})
        self.log.tracker.scalars(
            progress.step,
            {"train/samples_per_second": progress.examples / progress.training_seconds},
        )
        self.log.show({"loss": mean, **self._last_metrics})

    def _evaluate(self) -> None:
        """Score the validation split, note the best, move the plateau and the patience."""
        settings, progress = self.settings, self.progress
        if self.plan.recipe.before_evaluation is not None:
            self.plan.recipe.before_evaluation()
        scored = score_split(
            self.plan.prepared,
            "val",
            batch_size=settings.eval_batch_size,
            tables=self.plan.tables,
            model=self.plan.model,
            device=self.device,
        )
        metrics = scored.metrics("val")
        progress.evaluated_step = progress.step
        self.log.row(progress.step, progress.epoch, metrics)
        if settings.monitor not in metrics:
            raise ValueError(
                f"trainer.monitor={settings.monitor}, but the data set has no group column; the "
                f"metrics are {', '.join(metrics)}"
            )
        self._last_metrics = {k: metrics[k] for k in dict.fromkeys((settings.monitor, "val/auc"))}
        self.log.show(self._last_metrics)
        recipe, value = self.plan.recipe, metrics[settings.monitor]
        is_eligible = recipe.eligible is None or recipe.eligible()
        if is_eligible:
            self._is_new_best = progress.note_value(value, settings)
        if recipe.stop_when is not None and recipe.stop_when():
            progress.is_finished = True

    def _save(self) -> None:
        """Write a resume checkpoint, and the best weights if they are these."""
        self.log_bytes = self.log.size_bytes()
        state = {
            "tables": self.plan.tables.state_dict(),
            "model": self.plan.model.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.optimizer else {},
            "progress": self.progress.to_dict(),
            "last_metrics": dict(self._last_metrics),
            "validation_batch": self._validation.position,
            "extra": {name: part.state_dict() for name, part in self.plan.recipe.extra.items()},
            "random": self._ranks.from_first(torch.get_rng_state()),
            "random_ranks": self._ranks.random_states(),
            **cuda_states(self._ranks, self.device),
            "log_bytes": self.log_bytes,
        }
        self._states.save(self.progress.step, state, is_best=self._is_new_best)
        self._is_new_best = False

    def _resume(self) -> None:
        found = self._states.newest()
        if found is None:
            self.log.truncate(self.log_bytes)
            if self.optimizer is not None and self.plan.optimizer_state is not None:
                self.optimizer.load_state_dict(dict(self.plan.optimizer_state))
            return
        step, state = found
        self.plan.tables.load_state_dict(state["tables"])
        self.plan.model.load_state_dict(state["model"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress.from_dict(state["progress"])
        self._last_metrics = state["last_metrics"]
        self._validation.position = state.get("validation_batch", 0)
        for part_name, part in self.plan.recipe.extra.items():
            part.load_state_dict(state["extra"][part_name])
        torch.set_rng_state(state["random"])
        self._ranks.part_random(self.plan.seed, state.get("random_ranks"))
        set_cuda_states(self._ranks, self.device, state, seed=self.plan.seed)
        self.log_bytes = state["log_bytes"]
        if not self.progress.is_finished:
            self.log.truncate(self.log_bytes)
            self.log.message(f"resuming after update {step}")

    def _restore_best(self) -> None:
        step = self.progress.best_step
        if step is None or self.plan.recipe.take == "last":
            return
        best = self._states.best(step)
        self.plan.tables.load_state_dict(best["tables"])
        self.plan.model.load_state_dict(best["model"])


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of `size` batches; the last may be shorter."""
    while group := list(itertools.islice(batches, size)):
        yield group


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
