"""DCN: cross layers with one vector each, beside an MLP."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recemb.models.cross import VectorCross
from recemb.models.mlp import MLP, Activation, xavier_linear
from recemb.models.ranking_model import RankingModel


class DCN(RankingModel):
    """logit = w . [cross(x_0), MLP(x_0)] + b with x_0 = [dense, v_1, ..., v_F].

    Vectors may differ in width.

    Args:
        num_dense: number of dense columns; they enter x_0 as they are.
        embedding_dims: width of each feature's vector.
        num_cross_layers: number of cross layers.
        hidden_units: widths of the MLP's hidden layers; none leaves the cross part alone.
        activation: of the hidden layers.
        dropout: after each hidden layer.
        batch_norm: in each hidden layer.

    Source: Wang et al., Deep & Cross Network, ADKDD 2017, equations 1 to 5.

    Example:
        >>> model = DCN(num_dense=2, embedding_dims=(4, 8), hidden_units=(16,))
        >>> model.from_values(torch.zeros(3, 2), torch.zeros(3, 12)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        *,
        num_dense: int,
        embedding_dims: Sequence[int],
        num_cross_layers: int = 3,
        hidden_units: Sequence[int] = (400, 400, 400),
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(num_dense=num_dense, embedding_dims=embedding_dims)
        width = num_dense + self.vectors_width
        self.cross = VectorCross(width=width, num_layers=num_cross_layers)
        self.mlp = (
            MLP(
                width,
                hidden_units,
                activation=activation,
                dropout=dropout,
                batch_norm=batch_norm,
            )
            if len(hidden_units) > 0
            else None
        )
        deep_width = 0 if self.mlp is None else self.mlp.out_features
        self.output = xavier_linear(width + deep_width, 1)

    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,); `weights` is empty."""
        inputs = torch.cat([dense, vectors], dim=1)
        parts = [self.cross(inputs)]
        if self.mlp is not None:
            parts.append(self.mlp(inputs))
        logits: Tensor = self.output(torch.cat(parts, dim=1))
        return logits.squeeze(1).float()
