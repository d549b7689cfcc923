"""The dense part of DeepFM and DLRM in plain torch, for peers that bring tables but no model.

Shapes: `B` examples, `F` features, `D` EMBEDDING_DIM.
"""

import itertools
from collections.abc import Sequence

import torch
from task import (
    ADAM_LEARNING_RATE,
    DEEPFM_UNITS,
    DLRM_BOTTOM_UNITS,
    DLRM_TOP_UNITS,
    EMBEDDING_DIM,
    NUM_DENSE,
    NUM_FEATURES,
    ModelName,
)
from torch import Tensor, nn


def _mlp(widths: Sequence[int], *, last_activation: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(a, b))
        if last_activation or i < len(widths) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class DeepFM(nn.Module):
    """The mathematics of recemb's DeepFM: dense columns are fields of the factorisation machine."""

    def __init__(self) -> None:
        super().__init__()
        self.dense_vectors = nn.Parameter(0.01 * torch.randn(NUM_DENSE, EMBEDDING_DIM))
        self.dense_weights = nn.Parameter(torch.zeros(NUM_DENSE))
        self.mlp = _mlp(
            (NUM_DENSE + NUM_FEATURES * EMBEDDING_DIM, *DEEPFM_UNITS, 1), last_activation=False
        )

    def forward(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return logits (B,) from (B, NUM_DENSE), (B, F, D) and first-order weights (B, F)."""
        fields = torch.cat([dense.unsqueeze(2) * self.dense_vectors, vectors], dim=1)
        pairs = 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1)
        first = weights.sum(1) + dense @ self.dense_weights
        deep: Tensor = self.mlp(torch.cat([dense, vectors.flatten(1)], dim=1)).squeeze(1)
        return first + pairs + deep


class DLRM(nn.Module):
    """Bottom MLP, inner products of all pairs, top MLP."""

    upper: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bottom = _mlp((NUM_DENSE, *DLRM_BOTTOM_UNITS, EMBEDDING_DIM), last_activation=True)
        count = NUM_FEATURES + 1
        rows, columns = torch.triu_indices(count, count, offset=1)
        self.register_buffer("upper", rows * count + columns)
        width = EMBEDDING_DIM + count * (count - 1) // 2
        self.top = _mlp((width, *DLRM_TOP_UNITS, 1), last_activation=False)

    def forward(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return logits (B,) from (B, NUM_DENSE) and (B, F, D); `weights` is not read."""
        z = self.bottom(dense)
        fields = torch.cat([z.unsqueeze(1), vectors], dim=1)
        products = torch.bmm(fields, fields.transpose(1, 2)).flatten(1)
        pairs = products.index_select(1, self.upper)
        logits: Tensor = self.top(torch.cat([z, pairs], dim=1))
        return logits.squeeze(1)


def dense_model(name: ModelName) -> nn.Module:
    """Return an untrained model."""
    return DeepFM() if name == "deepfm" else DLRM()


def dense_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that recemb's configuration gives its dense part, too."""
    return torch.optim.Adam(model.parameters(), lr=ADAM_LEARNING_RATE, fused=True)
