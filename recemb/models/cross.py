"""Cross layers: explicit products of bounded degree of one input vector.

Shapes: `B` examples, `W` width of the input, `R` rank.
"""

import torch
from torch import Tensor, nn

from recemb.models.mlp import xavier_linear


class VectorCross(nn.Module):
    """x_{l+1} = x_0 * (x_l . w_l) + b_l + x_l, one vector w_l and b_l per layer.

    Args:
        width: W.
        num_layers: number of cross layers, at least 1.

    Raises:
        ValueError: if `num_layers` is below 1.

    Source: Wang et al., Deep & Cross Network, ADKDD 2017, equation 3.

    Example:
        >>> import torch
        >>> VectorCross(width=6, num_layers=2)(torch.zeros(3, 6)).shape
        torch.Size([3, 6])
    """

    def __init__(self, *, width: int, num_layers: int) -> None:
        super().__init__()
        _check_layers("VectorCross", num_layers)
        self.weights = nn.ModuleList(
            [xavier_linear(width, 1, bias=False) for _ in range(num_layers)]
        )
        self.biases = nn.ParameterList(
            [nn.Parameter(torch.zeros(width)) for _ in range(num_layers)]
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, W) for `inputs` (B, W)."""
        crossed = inputs
        for weight, bias in zip(self.weights, self.biases, strict=True):
            crossed = inputs * weight(crossed) + bias + crossed
        return crossed


class MatrixCross(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, elementwise product; W_l = U_l V_l^T where low rank.

    Args:
        width: W.
        num_layers: number of cross layers, at least 1.
        low_rank: R, the columns of U_l and V_l; None keeps W_l full.

    Raises:
        ValueError: if `num_layers` or `low_rank` is below 1.

    Source: Wang et al., DCN V2, WWW 2021, equation 1; low rank as in its section on the
    cost-effective network, without the mixture of experts.

    Example:
        >>> import torch
        >>> MatrixCross(width=6, num_layers=2, low_rank=2)(torch.zeros(3, 6)).shape
        torch.Size([3, 6])
    """

    def __init__(self, *, width: int, num_layers: int, low_rank: int | None = None) -> None:
        super().__init__()
        _check_layers("MatrixCross", num_layers)
        if low_rank is not None and low_rank < 1:
            raise ValueError(
                f"MatrixCross: low_rank must be at least 1, or None for a full matrix; "
                f"got {low_rank}"
            )
        self.layers = nn.ModuleList([_matrix(width, low_rank) for _ in range(num_layers)])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, W) for `inputs` (B, W)."""
        crossed = inputs
        for layer in self.layers:
            crossed = inputs * layer(crossed) + crossed
        return crossed


def _matrix(width: int, low_rank: int | None) -> nn.Module:
    if low_rank is None:
        return xavier_linear(width, width)
    return nn.Sequential(xavier_linear(width, low_rank, bias=False), xavier_linear(low_rank, width))


def _check_layers(owner: str, num_layers: int) -> None:
    if num_layers < 1:
        raise ValueError(
            f"{owner}: num_layers must be at least 1, got {num_layers}; "
            "a model without cross layers is dnn"
        )
