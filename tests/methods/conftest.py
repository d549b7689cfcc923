"""The field sizes of the published budgets; planted clicks to train staged methods with."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import recemb.train.fit
from recemb.data.table import Table
from recemb.methods.hash import Hashing
from recemb.models.deepfm import DeepFM
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec
from recemb.train.context import TrainingContext
from recemb.train.experiment import table_specs
from recemb.train.fit import Fit
from recemb.train.log import NoTracker, RunLog
from recemb.train.settings import TrainerSettings

# Ids per field of Criteo Kaggle and Avazu without a minimum count.
_SIZES = {
    "criteo": [
        1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27,
        14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
    ],
    "avazu": [
        240, 7, 7, 4737, 7745, 26, 8552, 559, 36, 2686408, 6729486, 8251, 5, 4, 2626, 8, 9, 435, 4,
        68, 172, 60,
    ],
}  # fmt: skip


@pytest.fixture
def published_specs():
    """Return a function from "criteo" or "avazu" to its tables of width 16."""

    def specs_of(name):
        return [
            TableSpec(name=f"t{i}", num_embeddings=n, embedding_dim=16, feature_names=(f"f{i}",))
            for i, n in enumerate(_SIZES[name])
        ]

    return specs_of


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """Return 1500 clicks, 1200 of them for training, that follow the first of three columns."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.geometric(0.05, (1500, 3)) - 1, 59)
    chance = 1 / (1 + np.exp(-4 * np.sin(ids[:, 0])))
    columns = {f"f{i}": pa.array(ids[:, i]) for i in range(3)}
    label = pa.array((rng.random(1500) < chance).astype(np.int64))
    pq.write_table(pa.table({"label": label, **columns}), folder / "clicks.parquet")
    data = Table(
        files=["clicks.parquet"],
        label="label",
        categorical={name: {"encoding": "ids", "num_embeddings": 60} for name in columns},
        dense={},
    )
    return data.prepare(folder, folder / "prepared")


@pytest.fixture
def staged(planted, tmp_path):
    """Return a maker of contexts: 12 updates an epoch, a folder of checkpoints for each name."""

    def context(stages, *, folder="run", budget=None, epochs=3, **settings):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        return TrainingContext(
            prepared=planted,
            specs=table_specs(DeepFM, planted.schema, embedding_dim=8),
            model_class=DeepFM,
            model_options={"hidden_units": [8]},
            optimizer=TableOptimizer(kind="adam", learning_rate=0.02),
            dense_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
            settings=TrainerSettings(
                **{
                    "batch_size": 100,
                    "max_epochs": epochs,
                    "patience": 100,
                    **settings,
                }
            ),
            seed=1,
            budget=budget,
            checkpoints=place / "checkpoints",
            log=RunLog(place / "metrics.jsonl", tracker=NoTracker(), show_progress=False),
            resume_command="again",
            stages=stages,
        )

    return context


@pytest.fixture
def hashed_auc(staged):
    """Return the validation AUC of the hashing trick at a budget, on the planted clicks."""

    def auc(budget, *, epochs):
        method = Hashing(exact_below=0)
        context = staged(method.stages, folder="hashed", budget=budget, epochs=epochs)
        return context.evaluate(method.run(context))["val/auc"]

    return auc


class KilledError(Exception):
    """Stands for a process that was killed."""


@pytest.fixture
def resumes(staged, monkeypatch):
    """Return a check that a run killed after some updates and evaluations ends as one that was not.

    It counts the steps of the dense optimizer, fits and evaluations.
    """

    def run(method, folder, stop_at, **named):
        context = staged(method.stages, folder=folder, checkpoint_every_steps=3, **named)
        calls = [0]

        def counted(function):
            def call(*arguments, **options):
                calls[0] += 1
                if calls[0] == stop_at:
                    raise KilledError
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr("recemb.train.fit.score_split", counted(recemb.train.fit.score_split))
            patch.setattr(context, "fit", counted(context.fit))
            patch.setattr(Fit, "update", counted(Fit.update))
            patch.setattr(Fit, "loss", counted(Fit.loss))
            tables = method.run(context)
        return tables.state_dict(), calls[0], context

    def check(method, stop_at, **named):
        with pytest.raises(KilledError):
            run(method, "killed", stop_at, **named)
        state, _, killed = run(method, "killed", None, **named)
        expected, _, whole = run(method, "whole", None, **named)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)
        logs = [(c.checkpoints.parent / "metrics.jsonl").read_bytes() for c in (killed, whole)]
        assert logs[0] == logs[1]

    return check
