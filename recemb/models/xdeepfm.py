"""xDeepFM: a compressed interaction network (CIN), a linear part and an MLP.

Shapes: `B` examples, `M` fields, `D` embedding_dim, `H` feature maps of a CIN layer.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from recemb.models.field import FieldVectors, FirstOrder
from recemb.models.mlp import MLP, Activation, xavier_linear
from recemb.models.ranking_model import RankingModel


class CIN(nn.Module):
    """X^k_h = sum_{i,j} W^k_hij (X^{k-1}_i * X^0_j), elementwise in D; sums over D are returned.

    A layer holds B * H_{k-1} * M * D products at once, so wide layers over many fields need memory.

    Args:
        num_fields: M.
        cin_units: H of each layer, at least one layer.

    Raises:
        ValueError: on no layer or a layer of no map.

    Source: Lian et al., xDeepFM, KDD 2018, equations 6 and 7, with the identity activation that
    its experiments find best and without the halving of maps that its code offers.

    Example:
        >>> CIN(num_fields=3, cin_units=(5, 4))(torch.zeros(2, 3, 8)).shape
        torch.Size([2, 9])
    """

    def __init__(self, *, num_fields: int, cin_units: Sequence[int]) -> None:
        super().__init__()
        if len(cin_units) == 0 or min(cin_units) < 1:
            raise ValueError(
                f"CIN: cin_units must name at least one layer of at least 1 map, "
                f"got {list(cin_units)}; a model without CIN is wide_deep"
            )
        inputs = (num_fields, *cin_units[:-1])
        self.weights = nn.ParameterList(
            [
                nn.Parameter(torch.empty(units, num_maps * num_fields))
                for num_maps, units in zip(inputs, cin_units, strict=True)
            ]
        )
        for weight in self.weights:
            nn.init.xavier_normal_(weight)

    def forward(self, fields: Tensor) -> Tensor:
        """Return (B, sum of all H) for `fields` (B, M, D)."""
        maps, pooled = fields, []
        for weight in self.weights:
            products = maps.unsqueeze(2) * fields.unsqueeze(1)  # (B, H, M, D)
            maps = torch.matmul(weight, products.flatten(1, 2))
            pooled.append(maps.sum(dim=2))
        return torch.cat(pooled, dim=1)


class XDeepFM(RankingModel):
    """logit = sum_i w_i x_i + w . CIN(v_1 x_1, ...) + MLP([dense, v_1, ..., v_F]) + b.

    Args:
        num_dense: number of dense columns; column i has a vector v_i in the CIN and a weight w_i in
            the linear part and enters the MLP as it is.
        embedding_dims: width of each feature's vector, all equal.
        cin_units: feature maps of each CIN layer.
        hidden_units: widths of the MLP's hidden layers.
        activation: of the hidden layers.
        dropout: after each hidden layer.
        batch_norm: in each hidden layer.

    Raises:
        ValueError: if the widths differ.

    Source: Lian et al., xDeepFM, KDD 2018, equation 9; the one bias b is the MLP's.

    Example:
        >>> model = XDeepFM(num_dense=2, embedding_dims=(4, 4), hidden_units=(16,))
        >>> model.from_values(torch.zeros(3, 2), torch.zeros(3, 8 + 2)).shape
        torch.Size([3])
    """

    reads_first_order: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_dense: int,
        embedding_dims: Sequence[int],
        cin_units: Sequence[int] = (64, 64),
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
        self.cin = CIN(num_fields=self.fields.num_fields, cin_units=cin_units)
        self.cin_output = xavier_linear(sum(cin_units), 1, bias=False)
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
        crossed: Tensor = self.cin_output(self.cin(self.fields(dense, vectors)))
        deep: Tensor = self.mlp(torch.cat([dense, vectors], dim=1))
        return first + crossed.squeeze(1).float() + deep.squeeze(1).float()
