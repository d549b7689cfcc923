import numpy as np
import pytest
import torch

from recemb.models.xdeepfm import CIN, XDeepFM

RTOL = ATOL = 1e-5  # float32 sums of at most a hundred products


def slow_cin(weights, fields: np.ndarray) -> np.ndarray:
    """Lian et al. 2018, equations 6 and 7 for one example; fields (M, D)."""
    num_fields, dim = fields.shape
    maps, pooled = fields, []
    for weight in weights:
        cubes = weight.reshape(len(weight), len(maps), num_fields)
        following = np.zeros((len(weight), dim))
        for h in range(len(weight)):
            for i in range(len(maps)):
                for j in range(num_fields):
                    following[h] += cubes[h, i, j] * maps[i] * fields[j]
        maps = following
        pooled += [float(row.sum()) for row in maps]
    return np.array(pooled)


@pytest.mark.parametrize("cin_units", [(1,), (3, 2), (2, 4, 3)])
def test_cin_is_the_triple_loop(cin_units, randomised, to_numpy) -> None:
    cin = randomised(CIN(num_fields=3, cin_units=cin_units))
    fields = torch.randn(2, 3, 4)
    expected = [slow_cin([to_numpy(w) for w in cin.weights], row) for row in to_numpy(fields)]
    np.testing.assert_allclose(to_numpy(cin(fields)), expected, rtol=RTOL, atol=ATOL)


def test_cin_of_one_layer_of_ones_is_the_square_of_the_sum() -> None:
    cin = CIN(num_fields=3, cin_units=(1,))
    cin.weights[0].data.fill_(1.0)
    fields = torch.randn(2, 3, 4)
    torch.testing.assert_close(cin(fields), fields.sum(dim=1).square().sum(dim=1, keepdim=True))


@pytest.mark.parametrize("num_dense", [0, 2])
def test_logit_is_linear_plus_cin_plus_mlp(
    num_dense, randomised, draw_inputs, slow_mlp, slow_linear, to_numpy
) -> None:
    model = randomised(
        XDeepFM(num_dense=num_dense, embedding_dims=(4, 4), cin_units=(3, 2), hidden_units=(7,))
    )
    dense, values = draw_inputs(model, 3)
    x, vectors, weights = to_numpy(dense), to_numpy(values)[:, :8], to_numpy(values)[:, 8:]
    expected = slow_mlp(model.mlp, np.concatenate([x, vectors], axis=1))[:, 0]
    for b in range(3):
        fields = [x[b, i] * to_numpy(model.fields.dense_vectors)[i] for i in range(num_dense)]
        fields += list(vectors[b].reshape(2, 4))
        pooled = slow_cin([to_numpy(w) for w in model.cin.weights], np.array(fields))
        expected[b] += slow_linear(model.cin_output, pooled[None])[0, 0] + weights[b].sum()
        if num_dense:
            expected[b] += float(x[b] @ to_numpy(model.first_order.dense_weights))
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("cin_units", [(), (4, 0)])
def test_empty_cin_is_refused(cin_units) -> None:
    with pytest.raises(ValueError, match="cin_units must name at least one layer"):
        XDeepFM(num_dense=0, embedding_dims=(4, 4), cin_units=cin_units)
