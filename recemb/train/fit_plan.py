"""What a fit works on."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from recemb.data.prepared import Prepared
from recemb.models.click_model import ClickModel
from recemb.tables.recipe import Recipe
from recemb.tables.tables import Tables
from recemb.train.settings import TrainerSettings

DenseOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """What a fit works on.

    Attributes:
        prepared: the data.
        tables: on the device of the settings.
        model: on the same device.
        dense_optimizer: makes the optimizer of the model's parameters (and of the tables' dense
            ones).
        table_learning_rate: base learning rate of the fused tables.
        settings: how to run.
        seed: of the order of batches.
        log_start_bytes: length of the log when this fit first began.
        resume_command: what to tell the user who interrupts.
        recipe: what is special about this fit.
        optimizer_state: of the dense optimizer, to begin with; None for a fresh one.
        title: goes before "epoch" in the progress bar.
        method: name of the method; part of what checkpoints belong to.
        unfinished: what is wrong if this fit was not finished before; None if nothing is.
    """

    prepared: Prepared
    tables: Tables
    model: ClickModel
    dense_optimizer: DenseOptimizer
    table_learning_rate: float
    settings: TrainerSettings
    seed: int
    log_start_bytes: int = 0
    resume_command: str = "run the same command again"
    recipe: Recipe = field(default_factory=Recipe)
    optimizer_state: Mapping[str, Any] | None = None
    title: str = ""
    method: str = ""
    unfinished: str | None = None
