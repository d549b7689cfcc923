import numpy as np
import pytest

from recemb.models.dnn import DNN

RTOL = ATOL = 1e-5  # float32 sums of at most a hundred products


@pytest.mark.parametrize("num_dense", [0, 2])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_logit_is_the_mlp_of_everything_side_by_side(
    num_dense, batch_norm, randomised, draw_inputs, slow_mlp, to_numpy
) -> None:
    model = randomised(
        DNN(num_dense=num_dense, embedding_dims=(2, 3), hidden_units=(7, 5), batch_norm=batch_norm)
    )
    dense, values = draw_inputs(model, 3)
    inputs = np.concatenate([to_numpy(dense), to_numpy(values)], axis=1)
    expected = slow_mlp(model.mlp, inputs)[:, 0]
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL)


def test_dropout_acts_in_training_only(draw_inputs) -> None:
    model = DNN(num_dense=0, embedding_dims=(4,), hidden_units=(64,), dropout=0.5)
    inputs = draw_inputs(model, 8)
    assert not (model.from_values(*inputs) == model.from_values(*inputs)).all()
    model.eval()
    assert (model.from_values(*inputs) == model.from_values(*inputs)).all()
