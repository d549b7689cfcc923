import math

import numpy as np
import pytest
import torch
from torch import nn

from recemb.models.batch_norm import BatchNorm
from recemb.models.dropout import Dropout
from recemb.models.mlp import MLP, xavier_linear

# float32 sums of at most a hundred products against float64.
RTOL = ATOL = 1e-5


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "identity"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_equals_the_layers_one_by_one(
    activation, batch_norm, slow_mlp, randomised, to_numpy
) -> None:
    mlp = randomised(
        MLP(5, (7, 3), activation=activation, dropout=0.5, batch_norm=batch_norm, out_features=2)
    )
    inputs = torch.randn(3, 5)
    expected = slow_mlp(mlp, to_numpy(inputs))
    np.testing.assert_allclose(to_numpy(mlp(inputs)), expected, rtol=RTOL, atol=ATOL)


def test_order_in_a_hidden_layer_is_linear_norm_activation_dropout() -> None:
    mlp = MLP(5, (7,), dropout=0.5, batch_norm=True)
    kinds = [type(layer) for layer in mlp.layers]
    assert kinds == [nn.Linear, BatchNorm, nn.ReLU, Dropout]


def test_without_output_layer_ends_at_the_last_hidden_layer() -> None:
    assert MLP(5, (7, 3)).out_features == 3
    assert MLP(5, (7, 3))(torch.zeros(2, 5)).shape == (2, 3)


def test_without_hidden_layers_is_linear() -> None:
    mlp = MLP(5, (), out_features=1)
    inputs = torch.randn(2, 5)
    torch.testing.assert_close(mlp(2 * inputs), 2 * mlp(inputs))


def test_output_activation_follows_the_output_layer_only() -> None:
    mlp = MLP(5, (7,), out_features=2, output_activation="sigmoid")
    assert [type(layer) for layer in mlp.layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.Sigmoid]


def test_a_layer_under_batch_norm_has_no_bias() -> None:
    assert MLP(5, (7,), batch_norm=True).layers[0].bias is None
    assert MLP(5, (7,)).layers[0].bias is not None


def test_initial_weights_have_xaviers_variance() -> None:
    torch.manual_seed(0)
    weight = xavier_linear(300, 200).weight
    # The standard deviation of an estimate from n = 60,000 draws is std / sqrt(2 n): five of them.
    expected = math.sqrt(2 / (300 + 200))
    assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * weight.numel()))


def test_initial_bias_is_zero() -> None:
    assert not xavier_linear(3, 2).bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0, "hidden_units": (4,)}, "in_features must be at least 1, got 0"),
        (
            {"in_features": 4, "hidden_units": (4, 0)},
            r"hidden_units must be at least 1, got \[4, 0\]",
        ),
        ({"in_features": 4, "hidden_units": (4,), "activation": "gelu"}, "got 'gelu'"),
        ({"in_features": 4, "hidden_units": (4,), "dropout": 1.0}, r"in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(**arguments)
