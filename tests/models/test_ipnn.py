from itertools import combinations

import numpy as np
import pytest

from recemb.models.ipnn import IPNN

RTOL = ATOL = 1e-5  # float32 sums of at most a hundred products


@pytest.mark.parametrize("num_dense", [0, 2])
def test_logit_is_the_mlp_of_inputs_and_inner_products(
    num_dense, randomised, draw_inputs, slow_mlp, to_numpy
) -> None:
    model = randomised(IPNN(num_dense=num_dense, embedding_dims=(4, 4, 4), hidden_units=(7,)))
    dense, values = draw_inputs(model, 3)
    rows = []
    for x, vectors in zip(to_numpy(dense), to_numpy(values), strict=True):
        fields = [x[i] * to_numpy(model.fields.dense_vectors)[i] for i in range(num_dense)]
        fields += list(vectors.reshape(3, 4))
        products = [float(np.dot(u, v)) for u, v in combinations(fields, 2)]
        rows.append([*x, *vectors, *products])
    expected = slow_mlp(model.mlp, np.array(rows))[:, 0]
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL)
