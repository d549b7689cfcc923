"""One batch of examples, the unit between data and training.

Shapes: `B` examples, `F` categorical features.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of examples.

    Attributes:
        dense: (B, num_dense) float32.
        features: ids of all categorical features, keys in the schema's order; one-hot
            features have length 1 in every example.
        labels: (B,) float32, 0 or 1.
        groups: (B,) int64, what GAUC groups by, or None.
    """

    dense: Tensor
    features: KeyedJaggedTensor
    labels: Tensor
    groups: Tensor | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; itself when it is there already."""
        if self.labels.device == device:
            return self
        return replace(
            self,
            dense=self.dense.to(device, non_blocking=True),
            features=self.features.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )
