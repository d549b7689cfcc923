"""TorchRec's fused EmbeddingBagCollection with row-wise Adagrad, in a hand-written model.

`FusedEmbeddingBagCollection` is TorchRec's collection with the optimizer in the backward pass on
one process; the plain collection would leave row-sparse updates to the sharded one. First-order
weights stand in the 17th of 20 columns, as in `peers.fbgemm`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchrec
from dense_model import dense_model, dense_optimizer
from task import (
    ADAGRAD_EPS,
    ADAGRAD_LEARNING_RATE,
    EMBEDDING_DIM,
    FEATURES,
    NUM_FEATURES,
    Rows,
    Task,
    sigmoid,
)
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as loss_of
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_INIT_STDDEV = 0.01


class TorchRec:
    """A fused collection and a dense model."""

    def __init__(self, task: Task) -> None:
        self.width = EMBEDDING_DIM + (4 if task.model == "deepfm" else 0)
        self.tables = FusedEmbeddingBagCollection(
            tables=[
                torchrec.EmbeddingBagConfig(
                    name=f"table_{feature}",
                    embedding_dim=self.width,
                    num_embeddings=task.num_embeddings,
                    feature_names=[feature],
                )
                for feature in FEATURES
            ],
            optimizer_type=torchrec.optim.RowWiseAdagrad,
            optimizer_kwargs={"lr": ADAGRAD_LEARNING_RATE, "eps": ADAGRAD_EPS},
            device=torch.device("cpu"),
        )
        with torch.no_grad():
            for weight in self.tables.state_dict().values():
                weight.normal_(std=_INIT_STDDEV)
        self.model = dense_model(task.model)
        self.optimizer = dense_optimizer(self.model)

    def batch(self, rows: Rows) -> Any:
        """Return features, dense columns and labels."""
        ids = torch.from_numpy(rows.ids).long().T.contiguous().view(-1)
        features = KeyedJaggedTensor(
            keys=list(FEATURES), values=ids, lengths=torch.ones(ids.numel(), dtype=torch.int64)
        )
        return features, torch.from_numpy(rows.dense), torch.from_numpy(rows.labels)

    def _logits(self, features: KeyedJaggedTensor, dense: Tensor) -> Tensor:
        fields = self.tables(features).values().view(-1, NUM_FEATURES, self.width)
        vectors = fields[:, :, :EMBEDDING_DIM]
        weights = fields[:, :, EMBEDDING_DIM] if self.width > EMBEDDING_DIM else dense
        logits: Tensor = self.model(dense, vectors, weights)
        return logits

    def step(self, batch: Any) -> None:
        """Train on the batch; the tables are updated in the backward pass."""
        features, dense, labels = batch
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss_of(self._logits(features, dense), labels)
        loss.backward()
        self.optimizer.step()
        loss.item()

    def probabilities(self, batch: Any) -> npt.NDArray[np.float64]:
        """Return the predictions (B,)."""
        with torch.no_grad():
            return sigmoid(self._logits(*batch[:2]).numpy())


def build(task: Task) -> TorchRec:
    """Return the untrained peer."""
    return TorchRec(task)
