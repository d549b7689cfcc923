"""A small data set, and contexts that train on it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from recemb.data.prepared import Prepared
from recemb.data.synthetic import Synthetic
from recemb.models.dnn import DNN
from recemb.tables.optimizer import TableOptimizer
from recemb.train.context import TrainingContext
from recemb.train.experiment import table_specs
from recemb.train.log import NoTracker, RunLog
from recemb.train.settings import TrainerSettings

Make = Callable[..., TrainingContext]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("synthetic")
    data = Synthetic(num_train=640, num_val=300, num_test=100, scale=1e-5)
    return data.prepare(Path(), folder / "prepared")


@pytest.fixture
def make(prepared: Prepared, tmp_path: Path) -> Make:
    """Return a maker of contexts, all on the same folder, as a run and those that resume it."""

    def context(*, stages: Sequence[str] = ("first", "second"), **settings: int) -> TrainingContext:
        chosen = {"max_epochs": 2, "patience": 100, "checkpoint_every_steps": 1, **settings}
        return TrainingContext(
            prepared=prepared,
            specs=table_specs(DNN, prepared.schema, embedding_dim=4),
            model_class=DNN,
            model_options={"hidden_units": [8]},
            optimizer=TableOptimizer(kind="adagrad", learning_rate=0.1),
            dense_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
            settings=TrainerSettings(batch_size=128, **chosen),
            seed=3,
            budget=None,
            checkpoints=tmp_path / "checkpoints",
            log=RunLog(tmp_path / "metrics.jsonl", tracker=NoTracker(), show_progress=False),
            resume_command="again",
            stages=stages,
        )

    return context
