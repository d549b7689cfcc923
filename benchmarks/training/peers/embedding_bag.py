"""`nn.EmbeddingBag(sparse=True)` per table, with torch.optim.Adagrad on the sparse gradients."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from dense_model import dense_model, dense_optimizer
from task import (
    ADAGRAD_EPS,
    ADAGRAD_LEARNING_RATE,
    EMBEDDING_DIM,
    NUM_FEATURES,
    Rows,
    Task,
    sigmoid,
)
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as loss_of

_INIT_STDDEV = 0.01


def _bags(num_embeddings: int, dim: int) -> nn.ModuleList:
    bags = nn.ModuleList()
    for _ in range(NUM_FEATURES):
        weight = torch.empty(num_embeddings, dim).normal_(std=_INIT_STDDEV)
        bags.append(nn.EmbeddingBag(num_embeddings, dim, mode="sum", sparse=True, _weight=weight))
    return bags


class EmbeddingBags:
    """26 tables of vectors and, for DeepFM, 26 of first-order weights."""

    def __init__(self, task: Task) -> None:
        self.vectors = _bags(task.num_embeddings, EMBEDDING_DIM)
        self.weights = _bags(task.num_embeddings, 1) if task.model == "deepfm" else None
        self.model = dense_model(task.model)
        self.dense_optimizer = dense_optimizer(self.model)
        tables = [*self.vectors.parameters()]
        if self.weights is not None:
            tables += [*self.weights.parameters()]
        self.table_optimizer = torch.optim.Adagrad(
            tables, lr=ADAGRAD_LEARNING_RATE, eps=ADAGRAD_EPS
        )

    def batch(self, rows: Rows) -> Any:
        """Return (B, 1) ids of each feature, dense columns and labels."""
        ids = torch.from_numpy(rows.ids).long()
        columns = [c.contiguous().unsqueeze(1) for c in ids.unbind(1)]
        return columns, torch.from_numpy(rows.dense), torch.from_numpy(rows.labels)

    def _logits(self, columns: list[Tensor], dense: Tensor) -> Tensor:
        vectors = torch.stack([t(c) for t, c in zip(self.vectors, columns, strict=True)], dim=1)
        if self.weights is None:
            weights = dense.new_empty(0)
        else:
            weights = torch.cat([t(c) for t, c in zip(self.weights, columns, strict=True)], dim=1)
        logits: Tensor = self.model(dense, vectors, weights)
        return logits

    def step(self, batch: Any) -> None:
        """Train on the batch."""
        columns, dense, labels = batch
        self.dense_optimizer.zero_grad(set_to_none=True)
        self.table_optimizer.zero_grad(set_to_none=True)
        loss = loss_of(self._logits(columns, dense), labels)
        loss.backward()
        self.dense_optimizer.step()
        self.table_optimizer.step()
        loss.item()

    def probabilities(self, batch: Any) -> npt.NDArray[np.float64]:
        """Return the predictions (B,)."""
        with torch.no_grad():
            return sigmoid(self._logits(*batch[:2]).numpy())


def build(task: Task) -> EmbeddingBags:
    """Return the untrained peer."""
    return EmbeddingBags(task)
