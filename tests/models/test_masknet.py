import numpy as np
import pytest
import torch

from recemb.models.masknet import MaskBlock, MaskNet

RTOL = ATOL = 2e-5  # float32 sums of at most a hundred products, then normalised


def slow_layer_norm(norm: torch.nn.LayerNorm, inputs: np.ndarray, to_numpy) -> np.ndarray:
    centred = inputs - inputs.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + norm.eps)
    return scaled * to_numpy(norm.weight) + to_numpy(norm.bias)


def slow_block(
    block: MaskBlock, embeddings: np.ndarray, inputs: np.ndarray, slow_mlp, to_numpy
) -> np.ndarray:
    masked = slow_mlp(block.mask, embeddings) * inputs
    hidden = masked @ to_numpy(block.hidden.weight).T
    return np.maximum(slow_layer_norm(block.norm, hidden, to_numpy), 0)


@pytest.mark.parametrize("structure", ["parallel", "serial"])
@pytest.mark.parametrize("embedding_norm", [False, True])
@pytest.mark.parametrize("num_dense", [0, 2])
def test_logit_is_the_papers_formula(
    structure, embedding_norm, num_dense, randomised, draw_inputs, slow_mlp, to_numpy
) -> None:
    model = randomised(
        MaskNet(
            num_dense=num_dense,
            embedding_dims=(2, 3),
            structure=structure,
            block_units=(4, 5),
            reduction_ratio=1.5,
            hidden_units=(6,),
            embedding_norm=embedding_norm,
        )
    )
    dense, values = draw_inputs(model, 3)
    x, vectors = to_numpy(dense), to_numpy(values)
    embeddings = np.concatenate([x, vectors], axis=1)
    parts = [vectors[:, :2], vectors[:, 2:]]
    if embedding_norm:
        parts = [
            slow_layer_norm(norm, p, to_numpy) for norm, p in zip(model.norms, parts, strict=True)
        ]
    hidden = np.concatenate([x, *parts], axis=1)
    if structure == "serial":
        for block in model.blocks:
            hidden = slow_block(block, embeddings, hidden, slow_mlp, to_numpy)
    else:
        outputs = [slow_block(b, embeddings, hidden, slow_mlp, to_numpy) for b in model.blocks]
        hidden = np.concatenate(outputs, axis=1)
    expected = slow_mlp(model.mlp, hidden)[:, 0]
    actual = to_numpy(model.from_values(dense, values))
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL)


def test_mask_widens_by_the_reduction_ratio() -> None:
    block = MaskBlock(mask_features=6, in_features=4, out_features=3, reduction_ratio=2.5)
    assert [layer.out_features for layer in block.mask.layers[::2]] == [10, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": "both"}, "structure must be parallel or serial, got 'both'"),
        ({"block_units": ()}, "block_units is empty"),
        ({"block_units": (4, 1)}, "block_units must be at least 2, got 1"),
        ({"reduction_ratio": 0.01}, "reduction_ratio 0.01 leaves no hidden unit"),
        ({"embedding_dims": (1, 4)}, "layer norm makes a vector of width 1 constant"),
    ],
)
def test_bad_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        MaskNet(**{"num_dense": 0, "embedding_dims": (4, 4)} | arguments)
