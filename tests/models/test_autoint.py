import numpy as np
import pytest
import torch

from recemb.models.autoint import AutoInt, InteractingLayer

RTOL = ATOL = 2e-5  # float32 sums of at most a hundred products, through two softmaxes


def slow_layer(layer: InteractingLayer, fields: np.ndarray, to_numpy) -> np.ndarray:
    """Song et al. 2019, equations 5 to 8 for one example, field by field; fields (M, D)."""
    query, key, value = (to_numpy(p.weight) for p in (layer.query, layer.key, layer.value))
    width = len(query) // layer.num_heads
    rows = []
    for field in fields:
        joined = []
        for head in range(layer.num_heads):
            of_head = slice(head * width, (head + 1) * width)
            scores = [
                float(np.dot(query[of_head] @ field, key[of_head] @ other)) for other in fields
            ]
            attention = np.exp(scores) / np.exp(scores).sum()
            joined.append(
                sum(
                    a * (value[of_head] @ other) for a, other in zip(attention, fields, strict=True)
                )
            )
        residual = field if layer.residual is None else to_numpy(layer.residual.weight) @ field
        rows.append(np.maximum(np.concatenate(joined) + residual, 0))
    return np.array(rows)


@pytest.mark.parametrize(("attention_dim", "num_heads"), [(6, 1), (6, 3), (4, 2)])
def test_layer_is_the_papers_formula(attention_dim, num_heads, randomised, to_numpy) -> None:
    layer = randomised(
        InteractingLayer(embedding_dim=4, attention_dim=attention_dim, num_heads=num_heads)
    )
    fields = torch.randn(2, 3, 4)
    expected = np.stack([slow_layer(layer, row, to_numpy) for row in to_numpy(fields)])
    np.testing.assert_allclose(to_numpy(layer(fields)), expected, rtol=RTOL, atol=ATOL)


def test_layer_treats_fields_alike() -> None:
    layer = InteractingLayer(embedding_dim=4, attention_dim=6, num_heads=2)
    fields, order = torch.randn(2, 3, 4), [2, 0, 1]
    torch.testing.assert_close(layer(fields[:, order]), layer(fields)[:, order])


def test_residual_has_a_matrix_only_where_the_width_changes() -> None:
    assert InteractingLayer(embedding_dim=4, attention_dim=4, num_heads=2).residual is None
    assert InteractingLayer(embedding_dim=4, attention_dim=6, num_heads=2).residual is not None


@pytest.mark.parametrize("num_dense", [0, 2])
@pytest.mark.parametrize("hidden_units", [(), (7,)])
def test_logit_is_linear_in_the_attended_fields_plus_mlp(
    num_dense, hidden_units, randomised, draw_inputs, slow_mlp, slow_linear, to_numpy
) -> None:
    model = randomised(
        AutoInt(
            num_dense=num_dense,
            embedding_dims=(4, 4),
            num_layers=2,
            attention_dim=6,
            hidden_units=hidden_units,
        )
    )
    dense, values = draw_inputs(model, 3)
    x, vectors = to_numpy(dense), to_numpy(values)
    expected = np.zeros(3)
    for b in range(3):
        fields = [x[b, i] * to_numpy(model.fields.dense_vectors)[i] for i in range(num_dense)]
        hidden = np.array([*fields, *vectors[b].reshape(2, 4)])
        for layer in model.layers:
            hidden = slow_layer(layer, hidden, to_numpy)
        expected[b] = slow_linear(model.output, hidden.reshape(1, -1))[0, 0]
    if hidden_units:
        expected += slow_mlp(model.mlp, np.concatenate([x, vectors], axis=1))[:, 0]
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3, "attention_dim": 64}, "multiple of num_heads, got 64 and 3"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        AutoInt(num_dense=0, embedding_dims=(4, 4), **arguments)


def test_one_column_leaves_attention_no_choice() -> None:
    with pytest.raises(ValueError, match="attention needs two columns"):
        AutoInt(num_dense=0, embedding_dims=(4,))
