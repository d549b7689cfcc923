import numpy as np
import pytest
import torch

from recemb.models.fm import FM

RTOL = ATOL = 1e-5  # float32 sums of at most a hundred products


@pytest.mark.parametrize("num_dense", [0, 2])
def test_logit_is_the_double_sum_over_pairs(num_dense, randomised, draw_inputs, to_numpy) -> None:
    """Rendle 2010, equation 1, over the design matrix's variables: x_i of 1 for a feature's id."""
    model = randomised(FM(num_dense=num_dense, embedding_dims=(4, 4, 4)))
    dense, values = draw_inputs(model, 3)
    expected = []
    for xs, row in zip(to_numpy(dense), to_numpy(values), strict=True):
        x, w, v = [1.0] * 3, list(row[12:]), list(row[:12].reshape(3, 4))
        if num_dense:
            x += list(xs)
            w += list(to_numpy(model.first_order.dense_weights))
            v += list(to_numpy(model.fields.dense_vectors))
        logit = float(to_numpy(model.bias)) + sum(w[i] * x[i] for i in range(len(x)))
        for i in range(len(x)):
            for j in range(i + 1, len(x)):
                logit += float(np.dot(v[i], v[j])) * x[i] * x[j]
        expected.append(logit)
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL)


def test_logit_does_not_depend_on_the_order_of_features(draw_inputs) -> None:
    model = FM(num_dense=2, embedding_dims=(4, 4, 4))
    dense, values = draw_inputs(model, 3)
    order = [2, 0, 1]
    vectors = values[:, :12].reshape(3, 3, 4)[:, order].reshape(3, 12)
    shuffled = torch.cat([vectors, values[:, 12:][:, order]], dim=1)
    torch.testing.assert_close(model.from_values(dense, shuffled), model.from_values(dense, values))


def test_one_column_has_no_pair() -> None:
    with pytest.raises(ValueError, match="there is one column; add a column or use model=lr"):
        FM(num_dense=0, embedding_dims=(4,))


def test_one_feature_and_one_dense_column_are_a_pair() -> None:
    model = FM(num_dense=1, embedding_dims=(1,))
    model.fields.dense_vectors.data.fill_(2.0)
    logit = model.from_values(torch.tensor([[3.0]]), torch.tensor([[5.0, 0.0]]))
    assert logit.item() == 2.0 * 3.0 * 5.0
