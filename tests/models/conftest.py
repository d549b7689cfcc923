"""What the models' tests share: random weights and inputs, and a slow MLP in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recemb.models.dropout import Dropout
from recemb.models.mlp import MLP
from recemb.models.ranking_model import RankingModel

Array = NDArray[np.float64]


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def _slow_linear(layer: nn.Linear, inputs: Array) -> Array:
    weight = _numpy(layer.weight)
    outputs = np.zeros((len(inputs), len(weight)))
    for b in range(len(inputs)):
        for o in range(len(weight)):
            outputs[b, o] = sum(weight[o, i] * inputs[b, i] for i in range(inputs.shape[1]))
    return outputs if layer.bias is None else outputs + _numpy(layer.bias)


def _slow_norm(norm: nn.BatchNorm1d, inputs: Array) -> Array:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    centred = inputs - _numpy(norm.running_mean)
    scaled = centred / np.sqrt(_numpy(norm.running_var) + norm.eps)
    return scaled * _numpy(norm.weight) + _numpy(norm.bias)


def _slow_mlp(mlp: MLP, inputs: Array) -> Array:
    """The MLP in evaluation mode, layer by layer as its docstring says."""
    for layer in mlp.layers:
        match layer:
            case nn.Linear():
                inputs = _slow_linear(layer, inputs)
            case nn.BatchNorm1d():
                inputs = _slow_norm(layer, inputs)
            case nn.ReLU():
                inputs = np.maximum(inputs, 0)
            case nn.Tanh():
                inputs = np.tanh(inputs)
            case nn.Sigmoid():
                inputs = 1 / (1 + np.exp(-inputs))
            case Dropout() | nn.Identity():
                pass
            case _:
                raise AssertionError(f"no slow form of {layer}")
    return inputs


def _randomised(model: nn.Module) -> nn.Module:
    """Draw every parameter and statistic, so that zero biases hide nothing; evaluation mode."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator) * 0.4
            tensor.data.copy_(drawn.abs() + 0.5 if "running_var" in name else drawn)
    return model.eval()


def _inputs(model: RankingModel, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    width = model.vectors_width + (model.num_features if model.reads_first_order else 0)
    return (
        torch.randn(batch, model.num_dense, generator=generator),
        torch.randn(batch, width, generator=generator),
    )


@pytest.fixture
def to_numpy() -> Callable[[Tensor], Array]:
    return _numpy


@pytest.fixture
def slow_mlp() -> Callable[[MLP, Array], Array]:
    return _slow_mlp


@pytest.fixture
def slow_linear() -> Callable[[nn.Linear, Array], Array]:
    return _slow_linear


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    return _randomised


@pytest.fixture
def draw_inputs() -> Callable[[RankingModel, int], tuple[Tensor, Tensor]]:
    return _inputs
