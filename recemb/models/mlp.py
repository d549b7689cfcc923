"""A stack of linear layers, the part that most ranking models share.

Shapes: `B` examples.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from recemb.models.batch_norm import BatchNorm
from recemb.models.dropout import Dropout

Activation = Literal["relu", "leaky_relu", "sigmoid", "tanh", "identity"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


def xavier_linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer with normal Xavier weights and a zero bias.

    Source: Glorot and Bengio, AISTATS 2010, equation 12, with the normal of that variance, from
    which the BARS benchmark starts too.
    """
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Hidden layers of linear, batch norm, activation, dropout; then a linear output if asked.

    A hidden layer under batch norm has no bias, because the norm would subtract it again. A batch
    of one example is normalised as `BatchNorm` says.

    Args:
        in_features: width of the input.
        hidden_units: widths of the hidden layers, possibly none.
        activation: relu, leaky_relu, sigmoid, tanh or identity.
        dropout: probability of zeroing a hidden unit, in [0, 1).
        batch_norm: whether each hidden layer is normalised before its activation.
        out_features: width of a last linear layer; None ends at the last hidden layer.
        output_activation: of that last layer, which has neither batch norm nor dropout.

    Attributes:
        out_features: width of the output.

    Raises:
        ValueError: on an empty input, a width below 1, an unknown activation, or a dropout outside
            its range.

    Example:
        >>> import torch
        >>> MLP(8, (16, 4), dropout=0.1, out_features=1)(torch.zeros(3, 8)).shape
        torch.Size([3, 1])
    """

    def __init__(
        self,
        in_features: int,
        hidden_units: Sequence[int],
        *,
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        out_features: int | None = None,
        output_activation: Activation = "identity",
    ) -> None:
        super().__init__()
        _check(in_features, hidden_units, (activation, output_activation), dropout)
        widths = (in_features, *hidden_units)
        layers: list[nn.Module] = []
        for i in range(len(hidden_units)):
            layers.append(xavier_linear(widths[i], widths[i + 1], bias=not batch_norm))
            if batch_norm:
                layers.append(BatchNorm(widths[i + 1]))
            layers.append(_ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(Dropout(dropout))
        if out_features is not None:
            layers.append(xavier_linear(widths[-1], out_features))
            if output_activation != "identity":
                layers.append(_ACTIVATIONS[output_activation]())
        self.layers = nn.Sequential(*layers)
        self.out_features = widths[-1] if out_features is None else out_features

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, out_features) for `inputs` (B, in_features)."""
        outputs: Tensor = self.layers(inputs)
        return outputs


def _check(
    in_features: int, hidden_units: Sequence[int], activations: Sequence[str], dropout: float
) -> None:
    if in_features < 1:
        raise ValueError(f"MLP: in_features must be at least 1, got {in_features}; add an input")
    if any(width < 1 for width in hidden_units):
        raise ValueError(f"MLP: hidden_units must be at least 1, got {list(hidden_units)}")
    for activation in activations:
        if activation not in _ACTIVATIONS:
            raise ValueError(
                f"MLP: activation must be one of {', '.join(_ACTIVATIONS)}, got '{activation}'"
            )
    if not 0 <= dropout < 1:
        raise ValueError(f"MLP: dropout must be in [0, 1), got {dropout}; 0 switches it off")
