"""AutoInt: self-attention among fields, with an optional MLP beside it (AutoInt+).

Shapes: `B` examples, `M` fields, `D` width of a field, `A` attention_dim, `H` heads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recemb.models.dropout import Dropout
from recemb.models.field import FieldVectors
from recemb.models.mlp import MLP, xavier_linear
from recemb.models.ranking_model import RankingModel


class InteractingLayer(nn.Module):
    """ReLU(attention(X) + X W_residual), where each field attends to all fields in H heads.

    The residual has a matrix only where the width changes.

    Args:
        embedding_dim: D of the input.
        attention_dim: A of the output, all heads side by side.
        num_heads: H.
        dropout: probability of dropping an attention weight.

    Raises:
        ValueError: if `num_heads` does not divide `attention_dim`.

    Source: Song et al., AutoInt, CIKM 2019, equations 5 to 8; scores are not scaled there either.

    Example:
        >>> layer = InteractingLayer(embedding_dim=4, attention_dim=6, num_heads=2)
        >>> layer(torch.zeros(2, 3, 4)).shape
        torch.Size([2, 3, 6])
    """

    def __init__(
        self, *, embedding_dim: int, attention_dim: int, num_heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if num_heads < 1 or attention_dim < 1 or attention_dim % num_heads:
            raise ValueError(
                f"AutoInt: attention_dim must be a positive multiple of num_heads, "
                f"got {attention_dim} and {num_heads}"
            )
        self.num_heads = num_heads
        self.query = xavier_linear(embedding_dim, attention_dim, bias=False)
        self.key = xavier_linear(embedding_dim, attention_dim, bias=False)
        self.value = xavier_linear(embedding_dim, attention_dim, bias=False)
        self.residual = (
            xavier_linear(embedding_dim, attention_dim, bias=False)
            if embedding_dim != attention_dim
            else None
        )
        self.dropout = Dropout(dropout)

    def forward(self, fields: Tensor) -> Tensor:
        """Return (B, M, A) for `fields` (B, M, D)."""
        query, key, value = (
            self._heads(projection(fields)) for projection in (self.query, self.key, self.value)
        )
        attention = functional.softmax(torch.matmul(query, key.transpose(2, 3)), dim=3)
        attended = torch.matmul(self.dropout(attention), value)  # (B, H, M, A / H)
        joined = attended.transpose(1, 2).flatten(2)
        residual = fields if self.residual is None else self.residual(fields)
        return functional.relu(joined + residual)

    def _heads(self, projected: Tensor) -> Tensor:
        batch, fields, width = projected.shape
        split = projected.reshape(batch, fields, self.num_heads, width // self.num_heads)
        return split.transpose(1, 2)


class AutoInt(RankingModel):
    """logit = w . [e_1, ..., e_M] + b over the fields e after attention, + MLP([dense, v]).

    The MLP is optional; its hidden layers are ReLU.

    Args:
        num_dense: number of dense columns; column i is the field x_i * v_i, and enters the MLP as
            it is.
        embedding_dims: width of each feature's vector, all equal.
        num_layers: number of interacting layers.
        attention_dim: A, all heads together.
        num_heads: H, a divisor of `attention_dim`.
        hidden_units: widths of the MLP's hidden layers (AutoInt+); none leaves it out (AutoInt).
        dropout: of attention weights and after each hidden layer.
        batch_norm: in each hidden layer.

    Raises:
        ValueError: if the widths differ, there are fewer than two fields or no layer.

    Source: Song et al., AutoInt, CIKM 2019, section 4 and, for AutoInt+, section 5.5; the defaults
    are those of its experiments: three layers, two heads of width 32.

    Example:
        >>> model = AutoInt(num_dense=2, embedding_dims=(4, 4), hidden_units=(16,))
        >>> model.from_values(torch.zeros(3, 2), torch.zeros(3, 8)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        *,
        num_dense: int,
        embedding_dims: Sequence[int],
        num_layers: int = 3,
        attention_dim: int = 64,
        num_heads: int = 2,
        hidden_units: Sequence[int] = (),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(num_dense=num_dense, embedding_dims=embedding_dims)
        if num_layers < 1:
            raise ValueError(f"AutoInt: num_layers must be at least 1, got {num_layers}")
        self.fields = FieldVectors(
            num_dense=num_dense,
            num_features=self.num_features,
            embedding_dim=self.equal_width(),
        )
        if self.fields.num_fields < 2:
            raise ValueError(
                "AutoInt: attention needs two columns to choose between, but there is one; "
                "add a column or use model=dnn"
            )
        widths = (self.equal_width(), *[attention_dim] * num_layers)
        self.layers = nn.ModuleList(
            [
                InteractingLayer(
                    embedding_dim=widths[i],
                    attention_dim=attention_dim,
                    num_heads=num_heads,
                    dropout=dropout,
                )
                for i in range(num_layers)
            ]
        )
        self.output = xavier_linear(self.fields.num_fields * attention_dim, 1)
        self.mlp = (
            MLP(
                num_dense + self.vectors_width,
                hidden_units,
                dropout=dropout,
                batch_norm=batch_norm,
                out_features=1,
            )
            if len(hidden_units) > 0
            else None
        )

    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,); `weights` is empty."""
        hidden: Tensor = self.fields(dense, vectors)
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.output(hidden.flatten(1)).float()
        if self.mlp is not None:
            logits = logits + self.mlp(torch.cat([dense, vectors], dim=1)).float()
        return logits.squeeze(1)
