"""recemb as `recemb train` runs it: its configuration, its full tables, its `Fit`.

The step is `Fit`'s own update; nothing here is tuned beyond what the command line offers
(`trainer.precision`, `trainer.compile`, `embedding.backend`).
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from hydra import compose, initialize_config_module
from hydra.utils import get_class, instantiate
from task import DENSE, FEATURES, Rows, Task, sigmoid
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.checkpoint.store import CheckpointStore
from recemb.data.batch import Batch
from recemb.data.encoded import EncodedRows
from recemb.data.prepared import Prepared
from recemb.data.schema import Categorical, Schema
from recemb.data.writer import Writer
from recemb.train.experiment import table_specs
from recemb.train.fit import Fit, FitPlan
from recemb.train.log import NoTracker, RunLog


class Recemb:
    """A fit whose batches come from the benchmark."""

    def __init__(self, task: Task, *, overrides: list[str]) -> None:
        with initialize_config_module("recemb.conf", version_base="1.3"):
            config = compose(
                "train",
                [
                    f"model={task.model}",
                    "embedding=full",
                    f"trainer.batch_size={task.batch_size}",
                    *overrides,
                ],
            )
        self.folder = tempfile.TemporaryDirectory(prefix="recemb-bench-")
        self.batch_size = task.batch_size
        self.schema = Schema(
            dense=DENSE,
            categorical=tuple(
                Categorical(name=f, num_embeddings=task.num_embeddings) for f in FEATURES
            ),
            label="label",
        )
        optimizer = instantiate(config.optimizer.tables)
        model_class = get_class(config.model._target_)
        specs = table_specs(model_class, self.schema, embedding_dim=config.embedding_dim)
        tables = instantiate(config.embedding).build(
            specs, {}, None, optimizer=optimizer, seed=task.seed, device=torch.device("cpu")
        )
        options = instantiate(config.model, _partial_=True).keywords
        widths = list(tables.embedding_dims.values())[: len(FEATURES)]
        model = model_class(num_dense=len(DENSE), embedding_dims=widths, **options)
        self.plan = FitPlan(
            prepared=self._prepared(),
            tables=tables,
            model=model,
            dense_optimizer=instantiate(config.optimizer.dense),
            table_learning_rate=optimizer.learning_rate,
            settings=instantiate(config.trainer),
            seed=task.seed,
        )
        folder = Path(self.folder.name)
        self.fit = Fit(
            self.plan,
            store=CheckpointStore(folder / "checkpoints"),
            log=RunLog(folder / "metrics.jsonl", tracker=NoTracker(), show_progress=False),
        )

    def batch(self, rows: Rows) -> Batch:
        """Return a batch as `Prepared.batches` makes it."""
        ids = torch.from_numpy(rows.ids).long().T.contiguous().view(-1)
        features = KeyedJaggedTensor(
            keys=list(FEATURES),
            values=ids,
            lengths=torch.ones(ids.numel(), dtype=torch.int64),
            stride=len(rows.labels),
        )
        return Batch(
            dense=torch.from_numpy(rows.dense),
            features=features,
            labels=torch.from_numpy(rows.labels),
        )

    def step(self, batch: Batch) -> None:
        """Make the fit's update."""
        self.fit._update([batch])

    def probabilities(self, batch: Batch) -> npt.NDArray[np.float64]:
        """Return the predictions (B,)."""
        tables, model = self.plan.tables.eval(), self.plan.model.eval()
        with torch.no_grad():
            return sigmoid(model(batch.dense, tables(batch.features)).numpy())

    def parts(self, batches: list[Batch]) -> dict[str, float]:
        """Return the mean seconds of each part of a step over `batches`, which are trained on.

        `data` is what `Prepared.batches` takes without its background thread.
        """
        seconds = dict.fromkeys(
            (
                "data",
                "lookup",
                "dense_forward",
                "dense_backward",
                "table_update",
                "dense_optimizer",
            ),
            0.0,
        )
        for batch in batches:
            self._timed_step(batch, seconds)
        stream = self.plan.prepared.batches(
            "train", batch_size=self.batch_size, shuffle=True, prefetch=0
        )
        next(stream)
        for _ in batches:
            started = time.perf_counter()
            next(stream)
            seconds["data"] += time.perf_counter() - started
        return {part: total / len(batches) for part, total in seconds.items()}

    def _timed_step(self, batch: Batch, seconds: dict[str, float]) -> None:
        """Do what the fit's update does, with the backward pass cut at the tables' output."""
        fit = self.fit
        assert fit.optimizer is not None
        self.plan.tables.train()
        self.plan.model.train()
        clock = _Clock(seconds)
        fit.optimizer.zero_grad(set_to_none=True)
        vectors = self.plan.tables(batch.features).values()
        clock.lap("lookup")
        inputs = vectors.detach().requires_grad_()
        loss = self._loss(batch, inputs)
        clock.lap("dense_forward")
        loss.backward()
        clock.lap("dense_backward")
        vectors.backward(inputs.grad)
        clock.lap("table_update")
        fit.optimizer.step()
        clock.lap("dense_optimizer")

    def _loss(self, batch: Batch, vectors: Tensor) -> Tensor:
        """Return the mean loss as `Fit` computes it from the tables' output."""
        return self.fit.batch_loss.of((batch.dense, vectors), batch.labels) / len(batch)

    def _prepared(self) -> Prepared:
        """Return a prepared set of random ids, for timing how batches are made."""
        rng = np.random.default_rng(0)
        count = 40 * self.batch_size
        folder = Path(self.folder.name) / "prepared"
        folder.mkdir()
        highest = self.schema.categorical[0].num_embeddings
        with Writer(folder, self.schema) as writer:
            writer.append(
                "train",
                EncodedRows(
                    labels=rng.integers(0, 2, count).astype(np.uint8),
                    dense=rng.normal(size=(count, len(DENSE))).astype(np.float32),
                    ids=rng.integers(0, highest, (count, len(FEATURES))).astype(np.int32),
                ),
            )
            writer.finish({"name": "bench", "settings": {}, "sources": []})
        return Prepared(folder)


class _Clock:
    """Adds the time since the last lap to a part."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self._seconds[part] += now - self._last
        self._last = now


def build(task: Task, *, overrides: list[str]) -> Recemb:
    """Return the untrained peer.

    Args:
        task: what to train.
        overrides: of `recemb train`'s configuration.
    """
    return Recemb(task, overrides=overrides)
