import numpy as np

from recemb.models.fnn import FNN

RTOL = ATOL = 1e-5  # float32 sums of at most a hundred products


def test_logit_is_the_mlp_of_dense_weights_and_vectors(
    randomised, draw_inputs, slow_mlp, to_numpy
) -> None:
    model = randomised(FNN(num_dense=2, embedding_dims=(2, 3), hidden_units=(7, 5)))
    dense, values = draw_inputs(model, 3)
    vectors, weights = to_numpy(values)[:, :5], to_numpy(values)[:, 5:]
    inputs = np.concatenate([to_numpy(dense), weights, vectors], axis=1)
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, slow_mlp(model.mlp, inputs)[:, 0], rtol=RTOL, atol=ATOL)
