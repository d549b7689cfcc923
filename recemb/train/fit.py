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

from recemb.checkpoint.store import CheckpointName, CheckpointStore
from recemb.data.batch import Batch
from recemb.models.click_model import ClickModel
from recemb.train.evaluation import score
from recemb.train.fit_plan import FitPlan
from recemb.train.log import RunLog
from recemb.train.progress import InterruptedFitError, Progress, StopSignals
from recemb.train.settings import LOWER_IS_BETTER
from recemb.train.validation import ValidationStream

_RESUME, _BEST = "step", "best"
_FALL_WARNING = (
    "{monitor} fell from {first:.5f} after the first epoch to {now:.5f}: click models over-fit "
    "their embeddings from the second epoch on. What to try: trainer.max_epochs=1; "
    "trainer.eval_every_steps=N to stop inside an epoch; a smaller "
    "optimizer.tables.learning_rate; optimizer.tables.weight_decay=1e-6 or more; dropout in the "
    "model; a higher minimum count in the data. The best checkpoint is kept either way."
)


class Fit:
    """A fit on one process; `run` does it, from wherever its checkpoints say.

    Args:
        plan: what to work on.
        store: where checkpoints go.
        log: where rows go.

    Attributes:
        progress: where the fit stands.
        log_bytes: length of the log at the last checkpoint.
    """

    def __init__(self, plan: FitPlan, *, store: CheckpointStore, log: RunLog) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.store = store
        self.log = log
        self.progress = Progress()
        self.device = plan.settings.resolve_device()
        self.settings.warn_if_bf16_is_slow(self.device)
        parameters = [*plan.model.parameters(), *plan.tables.dense_parameters()]
        self.optimizer = plan.dense_optimizer(parameters) if parameters else None
        self._clipped = parameters
        self._base_rates = [g["lr"] for g in self.optimizer.param_groups] if self.optimizer else []
        self._compiled = torch.compile(_loss_sum, dynamic=False) if self.settings.compile else None
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
        """
        self._resume()
        with StopSignals() as signals:
            while not self.progress.is_finished:
                self._epoch(signals)
        self._restore_best()
        return self.progress

    def _epoch(self, signals: StopSignals) -> None:
        plan, settings, progress = self.plan, self.settings, self.progress
        batches = plan.prepared.batches(
            "train",
            batch_size=settings.batch_size,
            seed=plan.seed,
            epoch=progress.epoch,
            shuffle=True,
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
                self._update(group)
                progress.training_seconds += time.perf_counter() - started
                self._after_update(signals)
                if progress.is_finished:
                    return
                started = time.perf_counter()
        progress.epoch, progress.batch = progress.epoch + 1, 0
        self._after_epoch()

    def _update(self, group: list[Batch]) -> None:
        """Make one update, the method's or the ordinary one, and count it."""
        tables, progress = self.plan.tables, self.progress
        tables.train()
        self.plan.model.train()
        self._set_learning_rates()
        batches = [batch.to(self.device) for batch in group]
        step = self.plan.recipe.step
        loss = self.update(batches) if step is None else step(self, batches)
        progress.batch += len(group)
        progress.step += 1
        progress.examples += sum(len(batch) for batch in group)
        progress.loss_sum += loss
        progress.loss_steps += 1
        self._check_loss(loss)

    def update(self, batches: Sequence[Batch]) -> float:
        """Make one update from the gradients of all batches; return their mean loss."""
        tables = self.plan.tables
        num_examples = sum(len(batch) for batch in batches)
        total = 0.0
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        for position, batch in enumerate(batches):
            is_last = position == len(batches) - 1
            tables.defer_updates(not is_last)
            loss = self._batch_loss(batch) / num_examples
            if is_last:
                loss = loss + tables.penalty()
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        if self.optimizer is not None:
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
        """Return the model's summed loss of a batch."""
        inputs = self.plan.model.inputs(batch, self.plan.tables)
        is_full = len(batch) == self.settings.batch_size
        function = self._compiled if self._compiled is not None and is_full else _loss_sum
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bf16"
        ):
            return function(self.plan.model, inputs, batch.labels)

    def _check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss} at update {self.progress.step}; the last good "
                f"checkpoint in {self.store.folder} is kept. Lower the learning rates or set "
                "trainer.max_gradient_norm=1"
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
        elif signals.received is not None or _is_due(
            progress.step, settings.checkpoint_every_steps
        ):
            self._save()
        if signals.received is not None and not progress.is_finished:
            self.log.end_epoch()
            raise InterruptedFitError(
                f"stopped by {signals.received.name} after update {progress.step}; everything is "
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
        batches = self.plan.prepared.batches("val", batch_size=settings.eval_batch_size)
        scored = score(batches, tables=self.plan.tables, model=self.plan.model, device=self.device)
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
        if is_eligible and self._is_better(value):
            progress.best_step, progress.best_value = progress.step, value
            progress.bad_evaluations = 0
            self.store.save(CheckpointName(_BEST, progress.step), self._weights())
        elif is_eligible:
            progress.note_no_improvement(settings)
        if recipe.stop_when is not None and recipe.stop_when():
            progress.is_finished = True

    def _is_better(self, value: float) -> bool:
        best = self.progress.best_value
        if best is None:
            return True
        gain = best - value if LOWER_IS_BETTER[self.settings.monitor] else value - best
        return gain >= self.settings.min_improvement

    def _weights(self) -> dict[str, Any]:
        return {
            "tables": self.plan.tables.state_dict(),
            "model": self.plan.model.state_dict(),
        }

    def _save(self) -> None:
        """Write a resume checkpoint, then remove what neither it nor an older one needs."""
        is_cuda = self.device.type == "cuda"
        self.log_bytes = self.log.size_bytes()
        state = {
            **self._weights(),
            "optimizer": self.optimizer.state_dict() if self.optimizer else {},
            "progress": self.progress.to_dict(),
            "last_metrics": dict(self._last_metrics),
            "validation_batch": self._validation.position,
            "extra": {name: part.state_dict() for name, part in self.plan.recipe.extra.items()},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if is_cuda else None,
            "log_bytes": self.log_bytes,
        }
        self.store.save(CheckpointName(_RESUME, self.progress.step), state)
        for old in self.store.names(_RESUME)[: -self.settings.keep_checkpoints]:
            self.store.remove(old)
        oldest = self.store.names(_RESUME)[0].step
        bests = self.store.names(_BEST)
        needed = [b for b in bests if b.step <= oldest][-1:]
        for best in bests:
            if best.step <= oldest and best not in needed:
                self.store.remove(best)

    def _resume(self) -> None:
        found = self.store.load_newest(_RESUME)
        if found is None:
            self.log.truncate(self.log_bytes)
            if self.optimizer is not None and self.plan.optimizer_state is not None:
                self.optimizer.load_state_dict(dict(self.plan.optimizer_state))
            return
        name, state = found
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
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        self.log_bytes = state["log_bytes"]
        if not self.progress.is_finished:
            self.log.truncate(self.log_bytes)
            self.log.message(f"resuming after update {name.step}")

    def _restore_best(self) -> None:
        step = self.progress.best_step
        if step is None or self.plan.recipe.take == "last":
            return
        best = self.store.load(CheckpointName(_BEST, step))
        self.plan.tables.load_state_dict(best["tables"])
        self.plan.model.load_state_dict(best["model"])


def _loss_sum(model: ClickModel, inputs: Any, labels: Tensor) -> Tensor:
    """Return what the model's training minimises, summed over a batch."""
    return model.loss_sum(inputs, labels)


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of `size` batches; the last may be shorter."""
    while group := list(itertools.islice(batches, size)):
        yield group


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
