"""DLRM: the dense columns become one more vector, and all pairs of vectors are multiplied."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from recemb.models.interaction import PairProducts
from recemb.models.mlp import MLP, Activation
from recemb.models.ranking_model import RankingModel


class DLRM(RankingModel):
    """logit = top([z, all <e_i, e_j>, i < j]) with z = bottom(dense) among the vectors e.

    Args:
        num_dense: number of dense columns; with 0 there is no bottom MLP and no z.
        embedding_dims: width of each feature's vector, all equal for "dot".
        bottom_units: hidden widths of the bottom MLP; a layer to D with the same activation
            follows, since z has to be as wide as the vectors.
        top_units: hidden widths of the top MLP; a linear layer to the logit follows.
        interaction: "dot" as above, or "cat": the top MLP reads z and the vectors side by side.
        activation: of both MLPs.
        dropout: after each hidden layer of both.
        batch_norm: in each hidden layer of both.

    Raises:
        ValueError: if the widths differ, or "dot" has a single vector and so no pair.

    Source: Naumov et al., arXiv 1906.00091, section 2.2 and figure 1; the default widths are
    those of its reference run on Criteo Kaggle, without the last bottom width, which is D.

    Example:
        >>> model = DLRM(num_dense=2, embedding_dims=(4, 4), bottom_units=(8,), top_units=(8,))
        >>> model.from_values(torch.zeros(3, 2), torch.zeros(3, 8)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        *,
        num_dense: int,
        embedding_dims: Sequence[int],
        bottom_units: Sequence[int] = (512, 256, 64),
        top_units: Sequence[int] = (512, 256),
        interaction: Literal["dot", "cat"] = "dot",
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(num_dense=num_dense, embedding_dims=embedding_dims)
        if interaction not in ("dot", "cat"):
            raise ValueError(f"DLRM: interaction must be dot or cat, got '{interaction}'")
        dim = self.equal_width()
        num_vectors = self.num_features + (num_dense > 0)
        self.bottom = (
            MLP(
                num_dense,
                bottom_units,
                activation=activation,
                dropout=dropout,
                batch_norm=batch_norm,
                out_features=dim,
                output_activation=activation,
            )
            if num_dense > 0
            else None
        )
        self.pairs = PairProducts(num_fields=num_vectors) if interaction == "dot" else None
        if self.pairs is None:
            top_width = num_vectors * dim
        else:
            top_width = self.pairs.num_pairs + (dim if num_dense > 0 else 0)
        if top_width == 0:
            raise ValueError(
                "DLRM: interaction 'dot' needs two vectors, but there is one feature and "
                "num_dense is 0; set interaction='cat' or add a column"
            )
        self.num_vectors = num_vectors
        self.embedding_dim = dim
        self.top = MLP(
            top_width,
            top_units,
            activation=activation,
            dropout=dropout,
            batch_norm=batch_norm,
            out_features=1,
        )

    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,); `weights` is empty."""
        parts = [] if self.bottom is None else [self.bottom(dense)]
        if self.pairs is None:
            parts.append(vectors)
        else:
            flat = torch.cat([*parts, vectors], dim=1)
            parts.append(
                self.pairs(flat.reshape(flat.shape[0], self.num_vectors, self.embedding_dim))
            )
        logits: Tensor = self.top(torch.cat(parts, dim=1))
        return logits.squeeze(1).float()
