"""The network on top of sequence models.

Shapes: `B` examples, `W` width of the features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recemb.models.batch_norm import BatchNorm

_SLOPE = 0.1


class Head(nn.Module):
    """logit = linear(... prelu(linear(batch_norm(features)))).

    Every PReLU has one slope, 0.1 at first. Linear weights are drawn as in He et al. (2015),
    equation 14, those of the last layer as in Glorot and Bengio (2010), equation 12.

    A batch of one example is normalised as `BatchNorm` says.

    Args:
        in_features: W.
        hidden_units: widths of the hidden layers.

    Raises:
        ValueError: if a width is below 1.

    Source: DARE's released code, with one logit and a sigmoid for its two and a softmax.
    """

    def __init__(self, in_features: int, hidden_units: Sequence[int]) -> None:
        super().__init__()
        if in_features < 1 or any(width < 1 for width in hidden_units):
            raise ValueError(
                f"Head: widths must be at least 1, got {in_features} and {list(hidden_units)}"
            )
        layers: list[nn.Module] = [BatchNorm(in_features)]
        width = in_features
        for units in hidden_units:
            linear = nn.Linear(width, units)
            nn.init.kaiming_normal_(linear.weight, a=_SLOPE)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.PReLU(init=_SLOPE)]
            width = units
        last = nn.Linear(width, 1)
        nn.init.xavier_normal_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B,) of features (B, W)."""
        logits: Tensor = self.layers(features)
        return logits.squeeze(1).float()


def draw_all(module: nn.Module, std: float) -> None:
    """Draw every parameter that is no bias from N(0, std), norms' gains and slopes too.

    Source: DARE's released code does so with std 0.01.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "bias" not in name:
                parameter.normal_(0.0, std)


def squared_norm(module: nn.Module) -> Tensor:
    """Return the sum of squares of every parameter that is no bias."""
    return torch.stack(
        [p.square().sum() for name, p in module.named_parameters() if "bias" not in name]
    ).sum()
