"""IPNN: an MLP over the vectors and the inner products of their pairs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recemb.models.field import FieldVectors
from recemb.models.interaction import PairProducts
from recemb.models.mlp import MLP, Activation
from recemb.models.ranking_model import RankingModel


class IPNN(RankingModel):
    """logit = MLP([z, p]), z = [dense, v_1, ..., v_F], p = all <v_i x_i, v_j x_j> with i < j.

    Args:
        num_dense: number of dense columns; column i enters z as it is and p by a vector v_i.
        embedding_dims: width of each feature's vector, all equal.
        hidden_units: widths of the hidden layers.
        activation: of the hidden layers.
        dropout: after each hidden layer.
        batch_norm: in each hidden layer.

    Raises:
        ValueError: if the widths differ.

    Source: Qu et al., Product-based Neural Networks, ICDM 2016, section III: the first
    hidden layer's W_z z + W_p p + b is one matrix over [z, p]. The paper sums over all i and j;
    p_ij = p_ji gives nothing new and p_ii is left out, as in the BARS benchmark.

    Example:
        >>> model = IPNN(num_dense=2, embedding_dims=(4, 4), hidden_units=(16,))
        >>> model.from_values(torch.zeros(3, 2), torch.zeros(3, 8)).shape
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
        self.fields = FieldVectors(
            num_dense=num_dense,
            num_features=self.num_features,
            embedding_dim=self.equal_width(),
        )
        self.pairs = PairProducts(num_fields=self.fields.num_fields)
        self.mlp = MLP(
            num_dense + self.vectors_width + self.pairs.num_pairs,
            hidden_units,
            activation=activation,
            dropout=dropout,
            batch_norm=batch_norm,
            out_features=1,
        )

    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,); `weights` is empty."""
        products = self.pairs(self.fields(dense, vectors))
        logits: Tensor = self.mlp(torch.cat([dense, vectors, products], dim=1))
        return logits.squeeze(1).float()
