"""Products of pairs of field vectors.

Shapes: `B` examples, `M` fields, `D` embedding_dim.
"""

import torch
from torch import Tensor, nn


def factorisation(fields: Tensor) -> Tensor:
    """Return the sum of the inner products of all pairs of fields, (B,) float32.

    Args:
        fields: (B, M, D).

    Source: Rendle, Factorization Machines, ICDM 2010, lemma 3.1:
        sum over i < j of <v_i, v_j> = 1/2 * (|sum v_i|^2 - sum |v_i|^2).

    Example:
        >>> factorisation(torch.tensor([[[1.0], [2.0], [3.0]]]))  # 1*2 + 1*3 + 2*3
        tensor([11.])
    """
    # The difference of two large squares loses bfloat16's eight bits.
    fields = fields.float()
    return 0.5 * (fields.sum(dim=1).square() - fields.square().sum(dim=1)).sum(dim=1)


class PairProducts(nn.Module):
    """The inner products of all pairs i < j of fields, in row order.

    Args:
        num_fields: M.

    Attributes:
        num_pairs: M * (M - 1) / 2.

    Example:
        >>> PairProducts(num_fields=3)(torch.tensor([[[1.0], [2.0], [3.0]]]))
        tensor([[2., 3., 6.]])
    """

    upper: Tensor

    def __init__(self, *, num_fields: int) -> None:
        super().__init__()
        self.num_pairs = num_fields * (num_fields - 1) // 2
        rows, columns = torch.triu_indices(num_fields, num_fields, offset=1)
        self.register_buffer("upper", rows * num_fields + columns, persistent=False)

    def forward(self, fields: Tensor) -> Tensor:
        """Return (B, num_pairs) for `fields` (B, M, D)."""
        gram = torch.bmm(fields, fields.transpose(1, 2))
        return gram.flatten(1).index_select(1, self.upper)
