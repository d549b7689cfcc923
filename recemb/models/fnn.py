"""FNN: an MLP over the first-order weights and vectors of a factorisation machine."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from recemb.models.mlp import MLP, Activation
from recemb.models.ranking_model import RankingModel


class FNN(RankingModel):
    """logit = MLP([dense, z_1, ..., z_F]) with z_i = (w_i, v_i); vectors may differ in width.

    This is the network. The paper's recipe trains a factorisation machine first and starts the
    tables from its w and v: train `fm`, then load its tables here.

    Args:
        num_dense: number of dense columns; they enter the MLP as they are.
        embedding_dims: width of each feature's vector.
        hidden_units: widths of the hidden layers.
        activation: of the hidden layers; the paper's comparison prefers tanh.
        dropout: after each hidden layer.
        batch_norm: in each hidden layer.

    Source: Zhang et al., Deep Learning over Multi-field Categorical Data, ECIR 2016, the
    section on FNN. Its constant input w_0 is the first layer's bias.

    Example:
        >>> model = FNN(num_dense=2, embedding_dims=(4, 8), hidden_units=(16,))
        >>> model.from_values(torch.zeros(3, 2), torch.zeros(3, 12 + 2)).shape
        torch.Size([3])
    """

    reads_first_order: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_dense: int,
        embedding_dims: Sequence[int],
        hidden_units: Sequence[int] = (400, 400, 400),
        activation: Activation = "tanh",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(num_dense=num_dense, embedding_dims=embedding_dims)
        self.mlp = MLP(
            num_dense + self.num_features + self.vectors_width,
            hidden_units,
            activation=activation,
            dropout=dropout,
            batch_norm=batch_norm,
            out_features=1,
        )

    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,)."""
        # All w, then all v: the order of an MLP's inputs means nothing.
        logits: Tensor = self.mlp(torch.cat([dense, weights, vectors], dim=1))
        return logits.squeeze(1).float()
