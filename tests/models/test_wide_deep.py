import numpy as np
import pytest

from recemb.models.wide_deep import WideDeep

RTOL = ATOL = 1e-5  # float32 sums of at most a hundred products


@pytest.mark.parametrize("num_dense", [0, 2])
def test_logit_is_wide_plus_deep(num_dense, randomised, draw_inputs, slow_mlp, to_numpy) -> None:
    model = randomised(WideDeep(num_dense=num_dense, embedding_dims=(2, 3), hidden_units=(7,)))
    dense, values = draw_inputs(model, 3)
    x, vectors, weights = to_numpy(dense), to_numpy(values)[:, :5], to_numpy(values)[:, 5:]
    wide = weights.sum(axis=1)
    if num_dense:
        wide = wide + x @ to_numpy(model.wide.dense_weights)
    deep = slow_mlp(model.mlp, np.concatenate([x, vectors], axis=1))[:, 0]
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, wide + deep, rtol=RTOL, atol=ATOL)
