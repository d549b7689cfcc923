import numpy as np
import pytest

from recemb.models.dcnv2 import DCNv2

RTOL = ATOL = 1e-5  # float32 sums of at most a hundred products


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
@pytest.mark.parametrize("hidden_units", [(), (7, 5)])
@pytest.mark.parametrize("low_rank", [None, 2])
def test_logit_is_the_papers_formula(
    structure, hidden_units, low_rank, randomised, draw_inputs, slow_mlp, slow_linear, to_numpy
) -> None:
    model = randomised(
        DCNv2(
            num_dense=2,
            embedding_dims=(2, 3),
            structure=structure,
            num_cross_layers=2,
            low_rank=low_rank,
            hidden_units=hidden_units,
        )
    )
    dense, values = draw_inputs(model, 3)
    inputs = np.concatenate([to_numpy(dense), to_numpy(values)], axis=1)
    crossed = inputs
    for layer in model.cross.layers:
        thin = [layer] if low_rank is None else list(layer)
        projected = crossed
        for linear in thin:
            projected = slow_linear(linear, projected)
        crossed = inputs * projected + crossed
    if not hidden_units:
        hidden = crossed
    elif structure == "stacked":
        hidden = slow_mlp(model.mlp, crossed)
    else:
        hidden = np.concatenate([crossed, slow_mlp(model.mlp, inputs)], axis=1)
    expected = slow_linear(model.output, hidden)[:, 0]
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL)


def test_unknown_structure_is_refused() -> None:
    with pytest.raises(ValueError, match="structure must be parallel or stacked, got 'both'"):
        DCNv2(num_dense=2, embedding_dims=(2, 3), structure="both")
