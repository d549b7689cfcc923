"""DNN: an MLP over everything side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recemb.models.mlp import MLP, Activation
from recemb.models.ranking_model import RankingModel


class DNN(RankingModel):
    """logit = MLP([dense, v_1, ..., v_F]); vectors may differ in width.

    Args:
        num_dense: number of dense columns; they enter the MLP as they are.
        embedding_dims: width of each feature's vector.
        hidden_units: widths of the hidden layers.
        activation: of the hidden layers.
        dropout: after each hidden layer.
        batch_norm: in each hidden layer.

    Source: Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys 2016,
    section 4, with ids of any feature in place of theirs.

    Example:
        >>> model = DNN(num_dense=2, embedding_dims=(4, 8), hidden_units=(16,))
        >>> model.from_values(torch.zeros(3, 2), torch.zeros(3, 12)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        *,
        num_dense: int,
        embedding_dims: Sequence[int],
        hidden_units: Sequence[int] = (400, 400, 400),
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(num_dense=num_dense, embedding_dims=embedding_dims)
        self.mlp = MLP(
            num_dense + self.vectors_width,
            hidden_units,
            activation=activation,
            dropout=dropout,
            batch_norm=batch_norm,
            out_features=1,
        )

    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,); `weights` is empty."""
        logits: Tensor = self.mlp(torch.cat([dense, vectors], dim=1))
        return logits.squeeze(1).float()
