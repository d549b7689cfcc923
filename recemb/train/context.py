"""What a method's recipe may ask of the trainer: fits and evaluations."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recemb.checkpoint.store import CheckpointName, Checkpoints, CheckpointStore
from recemb.data.batch import Batch
from recemb.data.prepared import Prepared
from recemb.models.click_model import ClickModel
from recemb.tables.method import Budget, BuildOn, IdCounts
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.recipe import Recipe
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables
from recemb.train.batch_norm import synchronise
from recemb.train.evaluation import score, score_split
from recemb.train.fit import Fit
from recemb.train.fit_plan import DenseOptimizer, FitPlan
from recemb.train.log import RunLog
from recemb.train.progress import Progress, StageReachedError
from recemb.train.ranks import Ranks
from recemb.train.settings import TrainerSettings
from recemb.train.sharded_checkpoints import checkpoints_of
from recemb.train.sharded_run import spread, unfinished
from recemb.train.validation import ValidationStream

_RESULT = "result"
# The name, in the checkpoint of a result, of the time that it took.
_SECONDS = "computed_in_seconds"


@dataclass(frozen=True, kw_only=True)
class FittedModel:
    """The ranking model of the last fit, where that fit ended, and its optimizer's state there."""

    model: ClickModel
    progress: Progress
    optimizer_state: Mapping[str, Any] | None = None


@dataclass(kw_only=True)
class TrainingContext:
    """The trainer as a method's `run` sees it; implements `recemb.tables.method.Context`.

    Attributes:
        prepared: the data.
        specs: the tables that the model reads.
        model_class: the ranking model.
        model_options: its hyper-parameters.
        optimizer: how rows are updated.
        dense_optimizer: makes the optimizer of the other parameters.
        settings: how a fit runs.
        seed: of weights, dropout and the order of batches.
        budget: allowed size of the tables, or None.
        checkpoints: the folder of checkpoints, one folder in it for each stage.
        log: rows.
        resume_command: what to tell a user who interrupts.
        stages: names of the method's fits, in order.
        method: the method's name.
        shared_stages: those of them that several processes can share.
        sharding: how they share the tables, see `sharding_of`; None for one process.
        stop_before: the stage before which to stop; None for none.
        ended: where each fit ended, by its stage, in order.
        computing_seconds: wall time of what `once` computed.
        train_parts: the bytes that the tables, and what their recipe keeps beside them, held in
            the fit that held most, part by part; gradients are not among them.
    """

    prepared: Prepared
    specs: Sequence[TableSpec]
    model_class: type[ClickModel]
    model_options: Mapping[str, Any]
    optimizer: TableOptimizer
    dense_optimizer: DenseOptimizer
    settings: TrainerSettings
    seed: int
    budget: Budget | None
    checkpoints: Path
    log: RunLog
    resume_command: str
    stages: Sequence[str] = ("train",)
    method: str = ""
    shared_stages: Sequence[str] = ()
    sharding: str | Mapping[str, Any] | None = None
    stop_before: str | None = None
    ended: dict[str, Progress] = field(default_factory=dict, init=False)
    computing_seconds: float = field(default=0.0, init=False)
    train_parts: dict[str, int] = field(default_factory=dict, init=False)
    _fitted: FittedModel | None = field(default=None, init=False)
    _log_bytes: int = field(default=0, init=False)

    @property
    def device(self) -> torch.device:
        """Return the device that tables and models live on."""
        return self.settings.resolve_device()

    @property
    def id_counts(self) -> IdCounts:
        """Return, per feature, how often each id occurs in the training split."""
        return _StoredCounts(self.prepared)

    @property
    def fitted(self) -> FittedModel:
        """Return the model of the last fit.

        Raises:
            RuntimeError: if the method has not fitted anything yet.
        """
        if self._fitted is None:
            raise RuntimeError("the method's run() returned without a fit; call ctx.fit(tables)")
        return self._fitted

    def shared(self, build: BuildOn) -> Tables:
        """Return untrained tables, of which each of several processes holds its part.

        Args:
            build: makes them on a device: on the meta device first, where there are several.

        Raises:
            ValueError: if they cannot be sharded; says why.
        """
        if Ranks.current().world_size == 1:
            return build(device=self.device)
        meta = build(device=torch.device("meta"))
        return spread(meta, self.sharding, owner=self.method, device=self.device, log=self.log)

    def fit(
        self, tables: Tables, *, stage: str, recipe: Recipe | None = None
    ) -> Mapping[str, float]:
        """Train `tables` and a ranking model, or load them if the stage was completed before.

        Args:
            tables: what to train; afterwards they hold the state that the recipe takes.
            stage: its name, one of `stages`.
            recipe: how it differs from an ordinary fit.

        Returns:
            The validation metrics of that state.

        Raises:
            ValueError: if the stage is unknown, or one process has to finish it first.
            StageReachedError: before the stage before which to stop.
        """
        if stage not in self.stages:
            raise ValueError(
                f"fit: there is no stage '{stage}'; the method's stages are {list(self.stages)}"
            )
        if stage == self.stop_before:
            raise StageReachedError(
                f"stopped before stage '{stage}', as stop_before says; everything before it is "
                f"saved. To go on: {self.resume_command}"
            )
        recipe = Recipe() if recipe is None else recipe
        torch.manual_seed(self.seed)
        if recipe.optimizer == "fresh":
            tables.reset_optimizer()
        kept = recipe.model == "keep"
        ranking_model = self.fitted.model if kept else self._build_model(tables)
        plan = FitPlan(
            prepared=self.prepared,
            tables=tables,
            model=ranking_model,
            dense_optimizer=self.dense_optimizer,
            table_learning_rate=self.optimizer.learning_rate,
            settings=self._settings(recipe),
            seed=self.seed,
            log_start_bytes=self._log_bytes,
            resume_command=self.resume_command,
            recipe=recipe,
            optimizer_state=self.fitted.optimizer_state if recipe.optimizer == "keep" else None,
            title=self._title(stage),
            method=self.method,
            unfinished=None if self._is_shared(stage) else self._unfinished(f"stage '{stage}'"),
        )
        Ranks.current().part_random(self.seed)
        fit = Fit(plan, store=self._checkpoints_of(stage, tables), log=self.log)
        progress = fit.run()
        self._log_bytes = fit.log_bytes
        self.ended[stage] = progress
        parts = held_bytes(tables, recipe)
        self.train_parts = max(self.train_parts, parts, key=lambda its: sum(its.values()))
        self._fitted = FittedModel(
            model=ranking_model, progress=progress, optimizer_state=fit.optimizer_state()
        )
        return self.evaluate(tables)

    def once(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what `compute` returns, or what it returned before the run was interrupted.

        Args:
            name: the folder of its checkpoint.
            compute: returns tensors and plain values.

        Raises:
            ValueError: if there are several processes, and one alone has to do it first.
        """
        store = CheckpointStore(self.checkpoints / name)
        found = store.load_newest(_RESULT)
        if found is None:
            if Ranks.current().world_size > 1:
                raise ValueError(self._unfinished(f"'{name}'"))
            started = time.perf_counter()
            computed = compute()
            seconds = time.perf_counter() - started
            store.save(CheckpointName(_RESULT, 0), {**computed, _SECONDS: seconds})
            found = store.load_newest(_RESULT)
        assert found is not None
        result = found[1]
        # A checkpoint of an earlier version has none.
        self.computing_seconds += result.pop(_SECONDS, 0.0)
        return result

    def evaluate(self, tables: Tables) -> Mapping[str, float]:
        """Return the validation metrics of `tables` with the model of the last fit."""
        scored = score_split(
            self.prepared,
            "val",
            batch_size=self.settings.eval_batch_size,
            tables=tables,
            model=self.fitted.model,
            device=self.device,
        )
        return scored.metrics("val")

    def validation_batch(self, position: int) -> Batch:
        """Return the batch at `position`, from 0, of an endless, shuffled pass over validation."""
        stream = ValidationStream(
            self.prepared, batch_size=self.settings.batch_size, seed=self.seed
        )
        stream.position = position
        return stream.next().to(self.device)

    def loss(self, tables: Tables, batch: Batch) -> float:
        """Return the mean log loss of a batch with the last fit's model, in evaluation mode."""
        scored = score([batch], tables=tables, model=self.fitted.model, device=self.device)
        logits, labels = torch.from_numpy(scored.logits), torch.from_numpy(scored.labels)
        return float(nn.functional.binary_cross_entropy_with_logits(logits, labels))

    def _checkpoints_of(self, stage: str, tables: Tables) -> Checkpoints:
        """Return the checkpoints of a stage."""
        if not self._is_shared(stage):
            return CheckpointStore(self.checkpoints / stage)
        in_background = self.settings.async_checkpoint
        return checkpoints_of(self.checkpoints / stage, tables, in_background=in_background)

    def _is_shared(self, stage: str) -> bool:
        """Return whether all processes that there are fit a stage."""
        return Ranks.current().world_size == 1 or stage in self.shared_stages

    def _unfinished(self, what: str) -> str:
        return unfinished(self.method, what, self.shared_stages[0])

    def _settings(self, recipe: Recipe) -> TrainerSettings:
        """Return the trainer's settings with those that the recipe replaces."""
        settings = self.settings
        if recipe.max_epochs is not None:
            settings = replace(settings, max_epochs=recipe.max_epochs)
        if recipe.patience is not None:
            settings = replace(settings, patience=recipe.patience)
        return settings

    def _title(self, stage: str) -> str:
        """Return which stage of how many this is; nothing if there is but one."""
        if len(self.stages) == 1:
            return ""
        return f"{stage} ({list(self.stages).index(stage) + 1} of {len(self.stages)}), "

    def _build_model(self, tables: Tables) -> ClickModel:
        """Return a fresh model for these tables."""
        model = self.model_class.for_tables(self.prepared.schema, tables, self.model_options)
        return synchronise(model.to(self.device))


class _StoredCounts(Mapping[str, Tensor]):
    """The counts of prepared data, each read when it is asked for: most methods need none."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared

    def __getitem__(self, feature: str) -> Tensor:
        return self._prepared.id_counts(feature)

    def __iter__(self) -> Iterator[str]:
        return iter(self._prepared.schema.feature_names)

    def __len__(self) -> int:
        return len(self._prepared.schema.feature_names)


def held_bytes(tables: Tables, recipe: Recipe) -> dict[str, int]:
    """Return the bytes that a fit holds for its tables, part by part; gradients are left out."""
    beside = sum(_tensor_bytes(stateful.state_dict()) for stateful in recipe.extra.values())
    return {**tables.storage().train, **({"recipe_state": beside} if beside else {})}


def _tensor_bytes(state: Any) -> int:
    """Return the bytes of all tensors in nested dictionaries and lists."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(_tensor_bytes(its) for its in state.values())
    return sum(_tensor_bytes(its) for its in state) if isinstance(state, list | tuple) else 0
