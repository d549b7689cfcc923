"""LR: logistic regression on ids and numbers."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from recemb.models.field import FirstOrder
from recemb.models.ranking_model import RankingModel


class LR(RankingModel):
    """logit = b + sum_i w_i x_i over dense columns and features; needs tables of width 1 only.

    Args:
        num_dense: number of dense columns, each with a weight of the model.
        embedding_dims: one width per feature; not read, since only first-order weights are.

    Source: Richardson et al., Predicting Clicks, WWW 2007, whose model is logistic regression.

    Example:
        >>> model = LR(num_dense=2, embedding_dims=(4, 4))
        >>> model.from_values(torch.zeros(3, 2), torch.ones(3, 2))
        tensor([2., 2., 2.], grad_fn=<AddBackward0>)
    """

    reads_vectors: ClassVar[bool] = False
    reads_first_order: ClassVar[bool] = True

    def __init__(self, *, num_dense: int, embedding_dims: Sequence[int]) -> None:
        super().__init__(num_dense=num_dense, embedding_dims=embedding_dims)
        self.first_order = FirstOrder(num_dense=num_dense)
        self.bias = nn.Parameter(torch.zeros(()))

    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,); `vectors` is empty."""
        first: Tensor = self.first_order(dense, weights)
        return first + self.bias
