"""An experiment from prepared data to a summary: tables, model, fit, evaluation."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recemb.data.prepared import Prepared
from recemb.data.schema import Schema
from recemb.models.click_model import ClickModel
from recemb.tables.method import Budget, Method
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables
from recemb.train.context import FittedModel, TrainingContext
from recemb.train.evaluation import score_split
from recemb.train.fit_plan import DenseOptimizer
from recemb.train.freed_memory import keep_freed_memory
from recemb.train.log import RunLog
from recemb.train.progress import Progress
from recemb.train.ranks import Ranks
from recemb.train.settings import TrainerSettings
from recemb.train.sharded_run import check_shared
from recemb.train.summary import hardware, peak_memory_bytes, versions


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained on what.

    Attributes:
        prepared: the data.
        method: how the tables are stored and trained.
        model: class of the model.
        model_options: its hyper-parameters.
        table_optimizer: how rows are updated.
        dense_optimizer: makes the optimizer of all other parameters.
        settings: how the fits run.
        embedding_dim: width of each feature's vector.
        seed: of weights, dropout and the order of batches.
        budget: allowed size of the tables, or None.
        resume_command: what to tell a user who interrupts.
        sharding: how several processes share the tables, see `sharding_of`; None if they may not.
    """

    prepared: Prepared
    method: Method
    model: type[ClickModel]
    model_options: Mapping[str, Any] = field(default_factory=dict)
    table_optimizer: TableOptimizer = field(default_factory=TableOptimizer)
    dense_optimizer: DenseOptimizer = torch.optim.Adam
    settings: TrainerSettings = field(default_factory=TrainerSettings)
    embedding_dim: int = 16
    seed: int = 1
    budget: Budget | None = None
    resume_command: str = "run the same command again"
    sharding: str | Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What an experiment leaves.

    Attributes:
        tables: with the best weights.
        model: with the best weights.
        summary: the figures, plain values.
    """

    tables: Tables
    model: ClickModel
    summary: dict[str, Any]


def table_specs(
    model: type[ClickModel],
    schema: Schema,
    *,
    embedding_dim: int,
    options: Mapping[str, Any] | None = None,
) -> tuple[TableSpec, ...]:
    """Return the tables that a model reads.

    Args:
        model: says what it reads.
        schema: the features.
        embedding_dim: width of vectors.
        options: the model's hyper-parameters.
    """
    return model.table_specs(schema, embedding_dim=embedding_dim, options=options or {})


def run_experiment(
    experiment: Experiment, *, folder: Path, log: RunLog, stop_before: str | None = None
) -> Trained:
    """Train, restore the best weights, evaluate on validation and test, and sum up.

    Args:
        experiment: what to do.
        folder: where checkpoints go; what an earlier, killed run left there is resumed.
        log: where rows go.
        stop_before: the stage before which to stop; None for none.

    Raises:
        InterruptedFitError: after a signal; everything is saved.
        StageReachedError: before `stop_before`.
        ValueError: if model, method and data do not fit each other.
    """
    started = time.perf_counter()
    settings = experiment.settings
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    if settings.keep_freed_memory and settings.resolve_device().type == "cpu":
        keep_freed_memory()
    torch.use_deterministic_algorithms(settings.deterministic)
    if Ranks.current().world_size > 1:
        check_shared(experiment.method, experiment.sharding)
    if stop_before not in (None, *experiment.method.stages):
        raise ValueError(
            f"stop_before={stop_before}: the method's stages are "
            f"{', '.join(experiment.method.stages)}"
        )
    context = training_context(experiment, folder=folder, log=log, stop_before=stop_before)
    tables = experiment.method.run(context)
    fitted = context.fitted
    metrics = _final_metrics(experiment, tables, fitted)
    return Trained(
        tables=tables,
        model=fitted.model,
        summary=_summary(experiment, tables, context, metrics, folder)
        | {"seconds": time.perf_counter() - started},
    )


def training_context(
    experiment: Experiment, *, folder: Path, log: RunLog, stop_before: str | None = None
) -> TrainingContext:
    """Return what the experiment's method trains with.

    Args:
        experiment: what to do.
        folder: where checkpoints go, and come from.
        log: where rows go.
        stop_before: the stage before which to stop; None for none.
    """
    return TrainingContext(
        prepared=experiment.prepared,
        specs=table_specs(
            experiment.model,
            experiment.prepared.schema,
            embedding_dim=experiment.embedding_dim,
            options=experiment.model_options,
        ),
        model_class=experiment.model,
        model_options=experiment.model_options,
        optimizer=experiment.table_optimizer,
        dense_optimizer=experiment.dense_optimizer,
        settings=experiment.settings,
        seed=experiment.seed,
        budget=experiment.budget,
        checkpoints=folder / "checkpoints",
        log=log,
        resume_command=experiment.resume_command,
        stages=experiment.method.stages,
        method=type(experiment.method).__name__,
        shared_stages=experiment.method.shared_stages(),
        sharding=experiment.sharding,
        stop_before=stop_before,
    )


def _final_metrics(experiment: Experiment, tables: Tables, fitted: FittedModel) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for split in ("val", "test"):
        if split not in experiment.prepared.splits:
            continue
        scored = score_split(
            experiment.prepared,
            split,
            batch_size=experiment.settings.eval_batch_size,
            tables=tables,
            model=fitted.model,
            device=experiment.settings.resolve_device(),
        )
        metrics |= scored.metrics(split)
    return metrics


def _summary(
    experiment: Experiment,
    tables: Tables,
    context: TrainingContext,
    metrics: dict[str, float],
    folder: Path,
) -> dict[str, Any]:
    storage, last = tables.storage(), context.fitted.progress
    stages = {name: _stage_summary(progress) for name, progress in context.ended.items()}
    seconds = sum(stage["training_seconds"] for stage in stages.values())
    examples = sum(stage["examples"] for stage in stages.values())
    return {
        "folder": str(folder),
        "metrics": metrics,
        "reference": dict(experiment.prepared.reference),
        "bytes": {
            "full": storage.full_bytes,
            "serve": storage.serve_bytes,
            "train": sum(context.train_parts.values()),
            "parts": {"serve": dict(storage.serve), "train": context.train_parts},
        },
        "ratio": storage.serve_bytes / storage.full_bytes,
        "samples_per_second": examples / seconds if seconds else 0.0,
        "training_seconds": seconds + context.computing_seconds,
        "stages": stages,
        "peak_memory_bytes": max(peaks := Ranks.current().everyone(peak_memory_bytes())),
        "rank_peak_memory_bytes": peaks,
        # Of the last stage.
        "epochs": last.epoch,
        "steps": last.step,
        "best_step": last.best_step,
        "examples": examples,
        "rows": {s: experiment.prepared.num_rows(s) for s in experiment.prepared.splits},
        "model_parameters": sum(p.numel() for p in context.fitted.model.parameters()),
        "seed": experiment.seed,
        "versions": versions(),
        "hardware": hardware(),
    }


def _stage_summary(progress: Progress) -> dict[str, Any]:
    return {
        name: getattr(progress, name)
        for name in ("epoch", "step", "best_step", "examples", "training_seconds")
    }
