import numpy as np
import pytest

from recemb.models.dcn import DCN

RTOL = ATOL = 1e-5  # float32 sums of at most a hundred products


@pytest.mark.parametrize("hidden_units", [(), (7, 5)])
def test_logit_is_linear_in_the_cross_and_the_deep_part(
    hidden_units, randomised, draw_inputs, slow_mlp, slow_linear, to_numpy
) -> None:
    model = randomised(
        DCN(num_dense=2, embedding_dims=(2, 3), num_cross_layers=2, hidden_units=hidden_units)
    )
    dense, values = draw_inputs(model, 3)
    inputs = np.concatenate([to_numpy(dense), to_numpy(values)], axis=1)
    crossed = []
    for x0 in inputs:
        x = x0
        for weight, bias in zip(model.cross.weights, model.cross.biases, strict=True):
            x = np.outer(x0, x) @ to_numpy(weight.weight)[0] + to_numpy(bias) + x
        crossed.append(x)
    parts = [np.array(crossed)]
    if hidden_units:
        parts.append(slow_mlp(model.mlp, inputs))
    expected = slow_linear(model.output, np.concatenate(parts, axis=1))[:, 0]
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL)


def test_no_cross_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        DCN(num_dense=2, embedding_dims=(2, 3), num_cross_layers=0)
