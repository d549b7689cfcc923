"""DeepFM: a factorisation machine and an MLP over the same vectors."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from recemb.models.field import FieldVectors, FirstOrder
from recemb.models.interaction import factorisation
from recemb.models.mlp import MLP, Activation
from recemb.models.ranking_model import RankingModel


class DeepFM(RankingModel):
    """logit = sum_i w_i x_i + sum_{i<j} <v_i x_i, v_j x_j> + MLP([dense, v_1, ..., v_F]) + b.

    Args:
        num_dense: number of dense columns; column i has a vector v_i and a weight w_i in the
            factorisation machine and enters the MLP as it is.
        embedding_dims: width of each feature's vector, all equal.
        hidden_units: widths of the hidden layers.
        activation: of the hidden layers.
        dropout: after each hidden layer.
        batch_norm: in each hidden layer.

    Raises:
        ValueError: if the widths differ.

    Source: Guo et al., DeepFM, IJCAI 2017, equations 1 to 4. The one bias b is the MLP's. The paper
    lets dense columns enter the MLP through their vectors; here the first layer reads x_i itself,
    which spans the same functions of it.

    Example:
        >>> model = DeepFM(num_dense=2, embedding_dims=(4, 4), hidden_units=(16,))
        >>> model.from_values(torch.zeros(3, 2), torch.zeros(3, 8 + 2)).shape
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
        self.first_order = FirstOrder(num_dense=num_dense)
        self.fields = FieldVectors(
            num_dense=num_dense,
            num_features=self.num_features,
            embedding_dim=self.equal_width(),
        )
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
        first: Tensor = self.first_order(dense, weights)
        second = factorisation(self.fields(dense, vectors))
        deep: Tensor = self.mlp(torch.cat([dense, vectors], dim=1))
        return first + second + deep.squeeze(1).float()
