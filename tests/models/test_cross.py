import numpy as np
import pytest
import torch

from recemb.models.cross import MatrixCross, VectorCross

RTOL = ATOL = 1e-5  # float32 sums of at most a hundred products


@pytest.mark.parametrize("num_layers", [1, 3])
def test_vector_cross_is_x0_xt_w_plus_b_plus_x(num_layers, randomised, to_numpy) -> None:
    cross = randomised(VectorCross(width=5, num_layers=num_layers))
    inputs = torch.randn(3, 5)
    for row, crossed in zip(to_numpy(inputs), to_numpy(cross(inputs)), strict=True):
        x = row
        for weight, bias in zip(cross.weights, cross.biases, strict=True):
            x = np.outer(row, x) @ to_numpy(weight.weight)[0] + to_numpy(bias) + x
        np.testing.assert_allclose(crossed, x, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("low_rank", [None, 2])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_matrix_cross_is_x0_times_wx_plus_b_plus_x(
    num_layers, low_rank, randomised, to_numpy
) -> None:
    cross = randomised(MatrixCross(width=5, num_layers=num_layers, low_rank=low_rank))
    inputs = torch.randn(3, 5)
    for row, crossed in zip(to_numpy(inputs), to_numpy(cross(inputs)), strict=True):
        x = row
        for layer in cross.layers:
            if low_rank is None:
                matrix, bias = to_numpy(layer.weight), to_numpy(layer.bias)
            else:
                matrix = to_numpy(layer[1].weight) @ to_numpy(layer[0].weight)
                bias = to_numpy(layer[1].bias)
            x = np.diag(row) @ (matrix @ x + bias) + x
        np.testing.assert_allclose(crossed, x, rtol=RTOL, atol=ATOL)


def test_matrix_cross_of_rank_one_rows_is_vector_cross() -> None:
    """With W = 1 w^T and the bias outside, DCN-V2's layer is DCN's (DCN V2, section 3.2)."""
    vector, matrix = VectorCross(width=4, num_layers=1), MatrixCross(width=4, num_layers=1)
    matrix.layers[0].weight.data = vector.weights[0].weight.data.expand(4, 4)
    inputs = torch.randn(3, 4)
    torch.testing.assert_close(matrix(inputs), vector(inputs))


def test_low_rank_has_two_thin_matrices() -> None:
    cross = MatrixCross(width=100, num_layers=1, low_rank=3)
    assert sum(p.numel() for p in cross.parameters()) == 2 * 100 * 3 + 100


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="VectorCross: num_layers must be at least 1, got 0"):
        VectorCross(width=4, num_layers=0)
    with pytest.raises(ValueError, match="MatrixCross: num_layers must be at least 1, got 0"):
        MatrixCross(width=4, num_layers=0)
    with pytest.raises(ValueError, match="low_rank must be at least 1, or None"):
        MatrixCross(width=4, num_layers=1, low_rank=0)
