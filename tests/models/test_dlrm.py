from itertools import combinations

import numpy as np
import pytest

from recemb.models.dlrm import DLRM

RTOL = ATOL = 1e-5  # float32 sums of at most a hundred products


@pytest.mark.parametrize("num_dense", [0, 2])
@pytest.mark.parametrize("interaction", ["dot", "cat"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_logit_is_the_papers_formula(
    num_dense, interaction, batch_norm, randomised, draw_inputs, slow_mlp, to_numpy
) -> None:
    model = randomised(
        DLRM(
            num_dense=num_dense,
            embedding_dims=(4, 4, 4),
            bottom_units=(5,),
            top_units=(7,),
            interaction=interaction,
            batch_norm=batch_norm,
        )
    )
    dense, values = draw_inputs(model, 3)
    bottom = slow_mlp(model.bottom, to_numpy(dense)) if num_dense else np.zeros((3, 0))
    rows = []
    for z, vectors in zip(bottom, to_numpy(values), strict=True):
        if interaction == "cat":
            rows.append([*z, *vectors])
            continue
        fields = [*([z] if num_dense else []), *vectors.reshape(3, 4)]
        rows.append([*z, *(float(np.dot(u, v)) for u, v in combinations(fields, 2))])
    expected = slow_mlp(model.top, np.array(rows))[:, 0]
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL)


def test_bottom_vector_is_activated_and_neither_dropped_nor_normalised() -> None:
    model = DLRM(num_dense=2, embedding_dims=(4, 4), bottom_units=(), dropout=0.5, batch_norm=True)
    assert [type(layer).__name__ for layer in model.bottom.layers] == ["Linear", "ReLU"]


def test_one_vector_has_no_dot_product() -> None:
    with pytest.raises(ValueError, match="needs two vectors, but there is one feature"):
        DLRM(num_dense=0, embedding_dims=(4,))


def test_one_feature_works_with_dense_columns_or_cat(draw_inputs) -> None:
    for model in (
        DLRM(num_dense=1, embedding_dims=(4,)),
        DLRM(num_dense=0, embedding_dims=(4,), interaction="cat"),
    ):
        assert model.from_values(*draw_inputs(model, 2)).shape == (2,)


def test_unknown_interaction_is_refused() -> None:
    with pytest.raises(ValueError, match="interaction must be dot or cat, got 'sum'"):
        DLRM(num_dense=2, embedding_dims=(4, 4), interaction="sum")
