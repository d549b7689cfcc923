import numpy as np
import pytest
import torch

from recemb.models.finalmlp import BilinearFusion, FinalMLP

RTOL = ATOL = 2e-5  # float32 sums of at most a hundred products, then multiplied


def slow_fusion(fusion: BilinearFusion, first: np.ndarray, second: np.ndarray, to_numpy) -> float:
    """One example: cut both into heads and add up o_1h^T W_h o_2h term by term."""
    bilinear = to_numpy(fusion.bilinear)
    heads, rows, columns = bilinear.shape
    weight = to_numpy(fusion.linear.weight)[0]
    total = float(to_numpy(fusion.linear.bias)[0] + weight @ np.concatenate([first, second]))
    for h in range(heads):
        for i in range(rows):
            for j in range(columns):
                total += bilinear[h, i, j] * first[h * rows + i] * second[h * columns + j]
    return total


@pytest.mark.parametrize("num_heads", [1, 2])
def test_fusion_is_linear_plus_bilinear_by_heads(num_heads, randomised, to_numpy) -> None:
    fusion = randomised(BilinearFusion(in_features=(4, 6), num_heads=num_heads))
    first, second = torch.randn(3, 4), torch.randn(3, 6)
    expected = [
        slow_fusion(fusion, u, v, to_numpy)
        for u, v in zip(to_numpy(first), to_numpy(second), strict=True)
    ]
    np.testing.assert_allclose(to_numpy(fusion(first, second)), expected, rtol=RTOL, atol=ATOL)


def test_one_head_is_torchs_bilinear_layer() -> None:
    fusion = BilinearFusion(in_features=(4, 6), num_heads=1)
    first, second = torch.randn(3, 4), torch.randn(3, 6)
    expected = torch.nn.functional.bilinear(first, second, fusion.bilinear)[:, 0]
    expected = expected + fusion.linear(torch.cat([first, second], dim=1))[:, 0]
    torch.testing.assert_close(fusion(first, second), expected)


@pytest.mark.parametrize("gate_features", [None, [[0], [1]], [[1, 0], []]])
def test_logit_is_the_papers_formula(
    gate_features, randomised, draw_inputs, slow_mlp, to_numpy
) -> None:
    model = randomised(
        FinalMLP(
            num_dense=2,
            embedding_dims=(2, 3),
            stream_units=((7, 4), (6,)),
            num_heads=2,
            gate_features=gate_features,
            gate_units=(5,),
        )
    )
    dense, values = draw_inputs(model, 3)
    vectors = to_numpy(values)
    features = [vectors[:, :2], vectors[:, 2:]]
    inputs = np.concatenate([to_numpy(dense), vectors], axis=1)
    gated = [inputs, inputs]
    if gate_features is not None:
        for s, gate in enumerate(model.gates):
            if gate_features[s]:
                context = np.concatenate([features[f] for f in gate_features[s]], axis=1)
            else:
                context = np.repeat(to_numpy(gate.learned), 3, axis=0)
            gated[s] = inputs * 2 * slow_mlp(gate.mlp, context)
    streams = [slow_mlp(mlp, e) for mlp, e in zip(model.streams, gated, strict=True)]
    expected = [slow_fusion(model.fusion, streams[0][b], streams[1][b], to_numpy) for b in range(3)]
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL)


def test_gates_of_zero_logits_pass_everything_unchanged(draw_inputs) -> None:
    model = FinalMLP(
        num_dense=2, embedding_dims=(2, 3), stream_units=((4,), (4,)), gate_features=((0,), ())
    )
    inputs = draw_inputs(model, 3)
    for gate in model.gates:
        gate.mlp.layers[-2].weight.data.zero_()
    gated = model.from_values(*inputs)
    model.gates = None
    torch.testing.assert_close(gated, model.from_values(*inputs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, r"num_heads must divide the last width of both streams, got 3"),
        ({"stream_units": ((4,),)}, "stream_units needs one entry for each of the two streams"),
        ({"stream_units": ((4,), ())}, "give each stream at least one layer"),
        ({"stream_dropout": (0.1,)}, "stream_dropout needs one entry"),
        ({"gate_features": ((0,),)}, "gate_features needs one entry"),
        ({"gate_features": ((0,), (2,))}, "names feature 2, but there are 2, counted from 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        FinalMLP(num_dense=0, embedding_dims=(4, 4), **arguments)
