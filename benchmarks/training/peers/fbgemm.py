"""One FBGEMM table-batched embedding with exact row-wise Adagrad, in a hand-written model.

FBGEMM wants widths divisible by four, so DeepFM's first-order weight is the 17th of 20 columns of
its feature's table: one lookup, which is the fastest way to get it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from dense_model import dense_model, dense_optimizer
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from task import (
    ADAGRAD_EPS,
    ADAGRAD_LEARNING_RATE,
    EMBEDDING_DIM,
    NUM_FEATURES,
    Rows,
    Task,
    sigmoid,
)
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as loss_of

_INIT_STDDEV = 0.01


class Fbgemm:
    """A table-batched embedding and a dense model."""

    def __init__(self, task: Task) -> None:
        self.width = EMBEDDING_DIM + (4 if task.model == "deepfm" else 0)
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            embedding_specs=[
                (task.num_embeddings, self.width, EmbeddingLocation.HOST, ComputeDevice.CPU)
            ]
            * NUM_FEATURES,
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=ADAGRAD_LEARNING_RATE,
            eps=ADAGRAD_EPS,
            device=torch.device("cpu"),
        )
        for weight in self.tables.split_embedding_weights():
            weight.normal_(std=_INIT_STDDEV)
        self.model = dense_model(task.model)
        self.optimizer = dense_optimizer(self.model)

    def batch(self, rows: Rows) -> Any:
        """Return ids feature by feature, offsets, dense columns and labels."""
        ids = torch.from_numpy(rows.ids).long().T.contiguous().view(-1)
        offsets = torch.arange(ids.numel() + 1)
        return ids, offsets, torch.from_numpy(rows.dense), torch.from_numpy(rows.labels)

    def _logits(self, ids: Tensor, offsets: Tensor, dense: Tensor) -> Tensor:
        fields = self.tables(ids, offsets).view(-1, NUM_FEATURES, self.width)
        vectors = fields[:, :, :EMBEDDING_DIM]
        weights = fields[:, :, EMBEDDING_DIM] if self.width > EMBEDDING_DIM else dense
        logits: Tensor = self.model(dense, vectors, weights)
        return logits

    def step(self, batch: Any) -> None:
        """Train on the batch; the tables are updated in the backward pass."""
        ids, offsets, dense, labels = batch
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss_of(self._logits(ids, offsets, dense), labels)
        loss.backward()
        self.optimizer.step()
        loss.item()

    def probabilities(self, batch: Any) -> npt.NDArray[np.float64]:
        """Return the predictions (B,)."""
        with torch.no_grad():
            return sigmoid(self._logits(*batch[:3]).numpy())


def build(task: Task) -> Fbgemm:
    """Return the untrained peer."""
    return Fbgemm(task)
