import numpy as np
import torch

from recemb.models.lr import LR


def test_logit_is_the_weighted_sum_and_bias(randomised, draw_inputs, to_numpy) -> None:
    model = randomised(LR(num_dense=2, embedding_dims=(4, 4, 4)))
    dense, values = draw_inputs(model, 3)
    dense_weights, bias = to_numpy(model.first_order.dense_weights), to_numpy(model.bias)
    expected = [
        bias + sum(x * w for x, w in zip(xs, dense_weights, strict=True)) + sum(ws)
        for xs, ws in zip(to_numpy(dense), to_numpy(values), strict=True)
    ]
    # float32 sums of five products.
    np.testing.assert_allclose(to_numpy(model.from_values(dense, values)), expected, rtol=1e-5)


def test_reads_weights_only() -> None:
    model = LR(num_dense=0, embedding_dims=(4, 8))
    assert model.from_values(torch.zeros(2, 0), torch.zeros(2, 2)).shape == (2,)
