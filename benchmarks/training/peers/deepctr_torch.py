"""DeepCTR-Torch's DeepFM with Adam, driven by the steps of its own `fit`, in the same order.

It has no DLRM. Its L2 penalties, which visit every row of every table, are off, as they would be
a choice of ours and not of the library's speed.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat, get_feature_names
from deepctr_torch.models import DeepFM
from task import ADAM_LEARNING_RATE, DEEPFM_UNITS, DENSE, EMBEDDING_DIM, FEATURES, Rows, Task


class DeepCtr:
    """DeepFM over one float matrix of all columns, which is what the library reads."""

    def __init__(self, task: Task) -> None:
        columns = [
            *(SparseFeat(f, task.num_embeddings, embedding_dim=EMBEDDING_DIM) for f in FEATURES),
            *(DenseFeat(d, 1) for d in DENSE),
        ]
        self.model = DeepFM(
            columns,
            columns,
            dnn_hidden_units=DEEPFM_UNITS,
            l2_reg_linear=0,
            l2_reg_embedding=0,
            seed=task.seed,
            device="cpu",
        )
        assert get_feature_names(columns) == [*FEATURES, *DENSE]
        optimizer = torch.optim.Adam(self.model.parameters(), lr=ADAM_LEARNING_RATE)
        self.model.compile(optimizer, "binary_crossentropy")

    def batch(self, rows: Rows) -> Any:
        """Return the float matrix and the labels."""
        matrix = np.concatenate([rows.ids.astype(np.float32), rows.dense], axis=1)
        return torch.from_numpy(matrix), torch.from_numpy(rows.labels)

    def step(self, batch: Any) -> None:
        """Train on the batch."""
        matrix, labels = batch
        model = self.model.train()
        predicted = model(matrix).squeeze(-1)
        model.optim.zero_grad()
        loss = model.loss_func(predicted, labels, reduction="sum")
        total = loss + model.get_regularization_loss() + model.aux_loss
        loss.item()
        total.item()
        total.backward()
        model.optim.step()

    def probabilities(self, batch: Any) -> npt.NDArray[np.float64]:
        """Return the predictions (B,)."""
        model = self.model.eval()
        with torch.no_grad():
            predicted: npt.NDArray[np.float64] = model(batch[0]).squeeze(-1).double().numpy()
        return predicted


def build(task: Task) -> DeepCtr:
    """Return the untrained peer."""
    return DeepCtr(task)
