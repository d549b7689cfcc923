"""Wide & Deep: a linear model and an MLP added up."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from recemb.models.field import FirstOrder
from recemb.models.mlp import MLP, Activation
from recemb.models.ranking_model import RankingModel


class WideDeep(RankingModel):
    """logit = sum_i w_i x_i + MLP([dense, v_1, ..., v_F]) + b; vectors may differ in width.

    Args:
        num_dense: number of dense columns; they enter both parts as they are.
        embedding_dims: width of each feature's vector.
        hidden_units: widths of the hidden layers.
        activation: of the hidden layers.
        dropout: after each hidden layer.
        batch_norm: in each hidden layer.

    Source: Cheng et al., Wide & Deep Learning, DLRS 2016, equation 3, where the one bias b is here
    the MLP's. Its crossed columns are features of the data set like any other; make them there.

    Example:
        >>> model = WideDeep(num_dense=2, embedding_dims=(4, 8), hidden_units=(16,))
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
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(num_dense=num_dense, embedding_dims=embedding_dims)
        self.wide = FirstOrder(num_dense=num_dense)
        self.mlp = MLP(
            num_dense + self.vectors_width,
            hidden_units,
            activation=activation,
            dropout=dropout,
            batch_norm=batch_norm,
            out_features=1,
        )

    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,)."""
        wide: Tensor = self.wide(dense, weights)
        deep: Tensor = self.mlp(torch.cat([dense, vectors], dim=1))
        return wide + deep.squeeze(1).float()
