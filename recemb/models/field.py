"""Fields: what factorisation models multiply, whether a column holds ids or a number.

A categorical feature gives the vector and the first-order weight that its table holds. A dense
column i of value x_i gives x_i * v_i and x_i * w_i, with v_i and w_i parameters of the model
(Rendle, ICDM 2010, equation 1, where a numeric variable is one variable of the design matrix).

Shapes: `B` examples, `F` features, `D` embedding_dim, `M` = num_dense + F fields.
"""

import torch
from torch import Tensor, nn

# libFM's default standard deviation is 0.1 for all factors; dense columns act on every example,
# so theirs start smaller.
_INIT_STDDEV = 0.01


class FieldVectors(nn.Module):
    """The vectors of all fields: dense columns first, then features.

    Args:
        num_dense: number of dense columns, possibly 0.
        num_features: F.
        embedding_dim: D.

    Attributes:
        num_fields: M.

    Example:
        >>> fields = FieldVectors(num_dense=2, num_features=3, embedding_dim=4)
        >>> fields(torch.ones(5, 2), torch.ones(5, 12)).shape
        torch.Size([5, 5, 4])
    """

    def __init__(self, *, num_dense: int, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_fields = num_dense + num_features
        self.num_features = num_features
        self.embedding_dim = embedding_dim
        self.dense_vectors: nn.Parameter | None = None
        if num_dense > 0:
            self.dense_vectors = nn.Parameter(torch.empty(num_dense, embedding_dim))
            nn.init.normal_(self.dense_vectors, std=_INIT_STDDEV)

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        """Return (B, M, D) from `dense` (B, num_dense) and `vectors` (B, F * D)."""
        fields = vectors.reshape(vectors.shape[0], self.num_features, self.embedding_dim)
        if self.dense_vectors is None:
            return fields
        return torch.cat([dense.unsqueeze(2) * self.dense_vectors, fields], dim=1)


class FirstOrder(nn.Module):
    """The sum of all fields' first-order terms, without a bias.

    Args:
        num_dense: number of dense columns, possibly 0.

    Example:
        >>> FirstOrder(num_dense=0)(torch.zeros(2, 0), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([3., 7.])
    """

    def __init__(self, *, num_dense: int) -> None:
        super().__init__()
        self.dense_weights = nn.Parameter(torch.zeros(num_dense)) if num_dense > 0 else None

    def forward(self, dense: Tensor, weights: Tensor) -> Tensor:
        """Return (B,) float32 from `dense` (B, num_dense) and `weights` (B, F)."""
        total = weights.float().sum(dim=1)
        if self.dense_weights is None:
            return total
        return total + (dense.float() * self.dense_weights).sum(dim=1)
