"""FM: the factorisation machine of degree two."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from recemb.models.field import FieldVectors, FirstOrder
from recemb.models.interaction import factorisation
from recemb.models.ranking_model import RankingModel


class FM(RankingModel):
    """logit = b + sum_i w_i x_i + sum_{i<j} <v_i x_i, v_j x_j>.

    Args:
        num_dense: number of dense columns, each with a weight and a vector of the model.
        embedding_dims: width of each feature's vector, all equal.

    Raises:
        ValueError: if the widths differ, or there are fewer than two columns to multiply.

    Source: Rendle, Factorization Machines, ICDM 2010, equation 1.

    Example:
        >>> model = FM(num_dense=0, embedding_dims=(1, 1))
        >>> model.from_values(torch.zeros(1, 0), torch.tensor([[2.0, 3.0, 0.5, 0.25]]))
        tensor([6.7500], grad_fn=<AddBackward0>)
    """

    reads_first_order: ClassVar[bool] = True

    def __init__(self, *, num_dense: int, embedding_dims: Sequence[int]) -> None:
        super().__init__(num_dense=num_dense, embedding_dims=embedding_dims)
        self.fields = FieldVectors(
            num_dense=num_dense,
            num_features=self.num_features,
            embedding_dim=self.equal_width(),
        )
        if self.fields.num_fields < 2:
            raise ValueError(
                "FM: it multiplies pairs of columns, but there is one column; add a column or use "
                "model=lr, which is what an FM of one column computes"
            )
        self.first_order = FirstOrder(num_dense=num_dense)
        self.bias = nn.Parameter(torch.zeros(()))

    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,)."""
        first: Tensor = self.first_order(dense, weights)
        return first + factorisation(self.fields(dense, vectors)) + self.bias
