from itertools import combinations

import numpy as np
import pytest

from recemb.models.deepfm import DeepFM

RTOL = ATOL = 1e-5  # float32 sums of at most a hundred products


@pytest.mark.parametrize("num_dense", [0, 2])
def test_logit_is_fm_plus_mlp_over_the_same_vectors(
    num_dense, randomised, draw_inputs, slow_mlp, to_numpy
) -> None:
    """Guo et al. 2017, equations 1 and 2, with the pairs summed one by one."""
    model = randomised(DeepFM(num_dense=num_dense, embedding_dims=(4, 4, 4), hidden_units=(7,)))
    dense, values = draw_inputs(model, 3)
    x, vectors, weights = to_numpy(dense), to_numpy(values)[:, :12], to_numpy(values)[:, 12:]
    expected = slow_mlp(model.mlp, np.concatenate([x, vectors], axis=1))[:, 0]
    for b in range(3):
        fields = list(vectors[b].reshape(3, 4))
        expected[b] += weights[b].sum()
        for i in range(num_dense):
            expected[b] += x[b, i] * to_numpy(model.first_order.dense_weights)[i]
            fields.append(x[b, i] * to_numpy(model.fields.dense_vectors)[i])
        expected[b] += sum(float(np.dot(u, v)) for u, v in combinations(fields, 2))
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL)
