"""DeepFM and DLRM of FuxiCTR's layers, trained by its own `train_step` with dense Adam.

The package on PyPI has the framework (layers, base model, training step) but not the model zoo, so
the two forward passes are put together here from its layers, in the order that its documentation
gives. Dense columns are fields with vectors of their own, which is FuxiCTR's way, so the first
layer of its DeepFM is wider than that of the others. Regularisation of embeddings is off; clipping
of the gradient's norm is part of its training step and stays.
"""

import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import (
    FactorizationMachine,
    FeatureEmbedding,
    InnerProductInteraction,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel
from task import (
    ADAM_LEARNING_RATE,
    DEEPFM_UNITS,
    DENSE,
    DLRM_BOTTOM_UNITS,
    DLRM_TOP_UNITS,
    EMBEDDING_DIM,
    FEATURES,
    NUM_DENSE,
    NUM_FEATURES,
    Rows,
    Task,
)
from torch import Tensor

_LABEL = "label"
# The default of the base model's `fit`, which sets it before the first step.
_MAX_GRADIENT_NORM = 10.0


def _feature_map(num_embeddings: int) -> FeatureMap:
    features = FeatureMap("bench", tempfile.gettempdir())
    features.labels = [_LABEL]
    features.default_emb_dim = EMBEDDING_DIM
    for name in DENSE:
        features.features[name] = {"type": "numeric", "source": ""}
    for name in FEATURES:
        features.features[name] = {
            "type": "categorical",
            "source": "",
            "vocab_size": num_embeddings,
        }
    features.num_fields = features.get_num_fields()
    features.set_column_index()
    return features


class _Model(BaseModel):
    def __init__(self, features: FeatureMap) -> None:
        super().__init__(
            features,
            model_id="bench",
            verbose=0,
            model_root=tempfile.gettempdir(),
            metrics=["logloss"],
        )

    def _finish(self) -> None:
        self.compile("adam", "binary_crossentropy", ADAM_LEARNING_RATE)
        self.reset_parameters()
        self.model_to_device()
        self._max_gradient_norm = _MAX_GRADIENT_NORM


class _DeepFM(_Model):
    def __init__(self, features: FeatureMap) -> None:
        super().__init__(features)
        self.embedding = FeatureEmbedding(features, EMBEDDING_DIM)
        self.fm = FactorizationMachine(features)
        self.mlp = MLP_Block(
            features.sum_emb_out_dim(), hidden_units=list(DEEPFM_UNITS), output_dim=1
        )
        self._finish()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        columns = self.get_inputs(inputs)
        fields = self.embedding(columns)
        logit = self.fm(columns, fields) + self.mlp(fields.flatten(1))
        return {"y_pred": self.output_activation(logit)}


class _DLRM(_Model):
    def __init__(self, features: FeatureMap) -> None:
        super().__init__(features)
        count = NUM_FEATURES + 1
        self.embedding = FeatureEmbedding(
            features, EMBEDDING_DIM, not_required_feature_columns=list(DENSE)
        )
        self.bottom = MLP_Block(
            NUM_DENSE,
            hidden_units=list(DLRM_BOTTOM_UNITS),
            output_dim=EMBEDDING_DIM,
            output_activation="ReLU",
        )
        self.interaction = InnerProductInteraction(count, output="inner_product")
        self.top = MLP_Block(
            EMBEDDING_DIM + count * (count - 1) // 2,
            hidden_units=list(DLRM_TOP_UNITS),
            output_dim=1,
        )
        self._finish()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        columns = self.get_inputs(inputs)
        z = self.bottom(torch.stack([columns[d] for d in DENSE], dim=1))
        fields = torch.cat([z.unsqueeze(1), self.embedding(columns)], dim=1)
        logit = self.top(torch.cat([z, self.interaction(fields)], dim=1))
        return {"y_pred": self.output_activation(logit)}


class FuxiCtr:
    """A FuxiCTR model on the CPU."""

    def __init__(self, task: Task) -> None:
        features = _feature_map(task.num_embeddings)
        self.model = _DeepFM(features) if task.model == "deepfm" else _DLRM(features)

    def batch(self, rows: Rows) -> Any:
        """Return one tensor per column, as FuxiCTR's loaders do."""
        columns = {d: torch.from_numpy(rows.dense[:, i].copy()) for i, d in enumerate(DENSE)}
        for i, f in enumerate(FEATURES):
            columns[f] = torch.from_numpy(rows.ids[:, i].astype(np.int64))
        columns[_LABEL] = torch.from_numpy(rows.labels)
        return columns

    def step(self, batch: Any) -> None:
        """Train on the batch."""
        self.model.train()
        self.model.train_step(batch).item()

    def probabilities(self, batch: Any) -> npt.NDArray[np.float64]:
        """Return the predictions (B,)."""
        self.model.eval()
        with torch.no_grad():
            predicted: Tensor = self.model(batch)["y_pred"]
        probabilities: npt.NDArray[np.float64] = predicted.view(-1).double().numpy()
        return probabilities


def build(task: Task) -> FuxiCtr:
    """Return the untrained peer."""
    return FuxiCtr(task)
