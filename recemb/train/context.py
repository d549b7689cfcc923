"""What a method's recipe may ask of the trainer: fits and evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recemb.checkpoint.store import CheckpointStore
from recemb.data.prepared import Prepared
from recemb.models.ranking_model import RankingModel
from recemb.tables.method import Budget, IdCounts, Keep
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables
from recemb.train.evaluation import score
from recemb.train.fit import DenseOptimizer, Fit, FitPlan
from recemb.train.log import RunLog
from recemb.train.progress import Progress
from recemb.train.settings import TrainerSettings


@dataclass(frozen=True, kw_only=True)
class FittedModel:
    """The ranking model of the last fit, and where that fit ended."""

    model: RankingModel
    progress: Progress


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
    """

    prepared: Prepared
    specs: Sequence[TableSpec]
    model_class: type[RankingModel]
    model_options: Mapping[str, Any]
    optimizer: TableOptimizer
    dense_optimizer: DenseOptimizer
    settings: TrainerSettings
    seed: int
    budget: Budget | None
    checkpoints: Path
    log: RunLog
    resume_command: str
    _fitted: FittedModel | None = field(default=None, init=False)
    _log_bytes: int = field(default=0, init=False)

    @property
    def device(self) -> torch.device:
        """Return the device that tables and models live on."""
        return self.settings.resolve_device()

    @property
    def id_counts(self) -> IdCounts:
        """Return, per feature, how often each id occurs in the training split."""
        names = self.prepared.schema.feature_names
        return {name: self.prepared.id_counts(name) for name in names}

    @property
    def fitted(self) -> FittedModel:
        """Return the model of the last fit.

        Raises:
            RuntimeError: if the method has not fitted anything yet.
        """
        if self._fitted is None:
            raise RuntimeError("the method's run() returned without a fit; call ctx.fit(tables)")
        return self._fitted

    def fit(self, tables: Tables, *, stage: str, model: Keep = "fresh") -> Mapping[str, float]:
        """Train `tables` and a ranking model, or load them if the stage was completed before.

        Args:
            tables: what to train; afterwards they hold the state of the best evaluation.
            stage: its name, unique within the method.
            model: whether to begin with a fresh ranking model or keep the last stage's.

        Returns:
            The validation metrics of that state.
        """
        torch.manual_seed(self.seed)
        ranking_model = self.fitted.model if model == "keep" else self._build_model(tables)
        plan = FitPlan(
            prepared=self.prepared,
            tables=tables,
            model=ranking_model,
            dense_optimizer=self.dense_optimizer,
            table_learning_rate=self.optimizer.learning_rate,
            settings=self.settings,
            seed=self.seed,
            log_start_bytes=self._log_bytes,
            resume_command=self.resume_command,
        )
        fit = Fit(plan, store=CheckpointStore(self.checkpoints / stage), log=self.log)
        progress = fit.run()
        self._log_bytes = fit.log_bytes
        self._fitted = FittedModel(model=ranking_model, progress=progress)
        return self.evaluate(tables)

    def evaluate(self, tables: Tables) -> Mapping[str, float]:
        """Return the validation metrics of `tables` with the model of the last fit."""
        batches = self.prepared.batches("val", batch_size=self.settings.eval_batch_size)
        scored = score(batches, tables=tables, model=self.fitted.model, device=self.device)
        return scored.metrics("val")

    def _build_model(self, tables: Tables) -> RankingModel:
        """Return a fresh model as wide as the tables' vectors."""
        num_features = len(self.prepared.schema.categorical)
        widths = list(tables.embedding_dims.values())
        return self.model_class(
            num_dense=len(self.prepared.schema.dense),
            embedding_dims=widths[:num_features],
            **self.model_options,
        ).to(self.device)
