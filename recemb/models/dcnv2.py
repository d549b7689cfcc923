"""DCN-V2: cross layers with a matrix each, beside or below an MLP."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from recemb.models.cross import MatrixCross
from recemb.models.mlp import MLP, xavier_linear
from recemb.models.ranking_model import RankingModel


class DCNv2(RankingModel):
    """logit = w . h + b, h = [cross(x_0), MLP(x_0)] or MLP(cross(x_0)).

    x_0 = [dense, v_1, ..., v_F]; vectors may differ in width. Hidden layers are ReLU.

    Args:
        num_dense: number of dense columns; they enter x_0 as they are.
        embedding_dims: width of each feature's vector.
        structure: "parallel" or "stacked", as above.
        num_cross_layers: number of cross layers.
        low_rank: rank of the cross matrices; None keeps them full.
        hidden_units: widths of the MLP's hidden layers; none leaves the cross part alone.
        dropout: after each hidden layer.
        batch_norm: in each hidden layer.

    Raises:
        ValueError: if `structure` is neither.

    Source: Wang et al., DCN V2, WWW 2021, section 3 and figure 1.

    Example:
        >>> model = DCNv2(num_dense=2, embedding_dims=(4, 8), hidden_units=(16,), low_rank=2)
        >>> model.from_values(torch.zeros(3, 2), torch.zeros(3, 12)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        *,
        num_dense: int,
        embedding_dims: Sequence[int],
        structure: Literal["parallel", "stacked"] = "parallel",
        num_cross_layers: int = 3,
        low_rank: int | None = None,
        hidden_units: Sequence[int] = (400, 400, 400),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(num_dense=num_dense, embedding_dims=embedding_dims)
        if structure not in ("parallel", "stacked"):
            raise ValueError(f"DCNv2: structure must be parallel or stacked, got '{structure}'")
        width = num_dense + self.vectors_width
        self.is_stacked = structure == "stacked"
        self.cross = MatrixCross(width=width, num_layers=num_cross_layers, low_rank=low_rank)
        self.mlp = (
            MLP(width, hidden_units, dropout=dropout, batch_norm=batch_norm)
            if len(hidden_units) > 0
            else None
        )
        deep_width = 0 if self.mlp is None else self.mlp.out_features
        cross_width = 0 if self.is_stacked and self.mlp is not None else width
        self.output = xavier_linear(cross_width + deep_width, 1)

    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,); `weights` is empty."""
        inputs = torch.cat([dense, vectors], dim=1)
        hidden = self.cross(inputs)
        if self.mlp is not None and self.is_stacked:
            hidden = self.mlp(hidden)
        elif self.mlp is not None:
            hidden = torch.cat([hidden, self.mlp(inputs)], dim=1)
        logits: Tensor = self.output(hidden)
        return logits.squeeze(1).float()
