"""The code bag's kernels agree with the float64 reference on drawn bags, codes and codebooks."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.kernels.code_bag import pack_codes, reference, unpack_codes

FLOAT32_ROUNDING = 1e-4  # sums of up to some tens of products of order one, added in float32


@st.composite
def lookups(draw: st.DrawFn) -> tuple[list[object], torch.Generator]:
    """Return the arguments of the op, float64, and a generator for more."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    num_features, examples = draw(st.integers(1, 2)), draw(st.integers(0, 3))
    offsets, num_ids = None, num_features * examples
    if draw(st.booleans()):
        bags = num_features * examples
        lengths = draw(st.lists(st.integers(0, 3), min_size=bags, max_size=bags))
        offsets, num_ids = torch.tensor([0, *lengths]).cumsum(0), sum(lengths)
    bits, parts, width = draw(st.integers(1, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    used = draw(st.integers(1, 2**bits))
    num_centroids = used + draw(st.integers(0, 3))
    num_rows = draw(st.integers(1, 5))
    sets = [num_features] if draw(st.booleans()) else []
    arguments = [
        pack_codes(torch.randint(used, (num_rows, parts), generator=g), bits),
        torch.randn(*sets, parts, num_centroids, width, generator=g, dtype=torch.float64),
        torch.randint(-2, num_rows, (num_ids,), generator=g),
        offsets,
        torch.randn(num_ids, generator=g, dtype=torch.float64) if draw(st.booleans()) else None,
        bits,
        num_features,
        draw(st.booleans()),
    ]
    return arguments, g


def lowered(arguments: list[object]) -> list[object]:
    return [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(lookups())
def test_kernels_agree_with_the_reference(drawn: tuple[list[object], torch.Generator]) -> None:
    from recemb.kernels.code_bag import kernel

    if torch.cuda.is_available():
        pytest.skip("hardware: the interpreter is off where there is a CUDA device")
    arguments, g = drawn
    expected = reference.forward(*arguments)
    close = {"atol": FLOAT32_ROUNDING, "rtol": 1e-4, "check_dtype": False}
    found = kernel.code_bag_forward(*lowered(arguments))
    torch.testing.assert_close(found, expected, **close)
    grad = torch.randn(expected.shape, generator=g, dtype=torch.float64)
    ours = kernel.code_bag_backward(grad.float(), *lowered(arguments))
    theirs = reference.backward(grad, *arguments)
    for part_of_ours, part_of_theirs in zip(ours, theirs, strict=True):
        torch.testing.assert_close(part_of_ours, part_of_theirs, **close)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 16), st.integers(1, 20), st.integers(0, 4), st.integers(0, 10**6))
def test_codes_return_unchanged(bits: int, parts: int, rows: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, parts), generator=g)
    assert torch.equal(unpack_codes(pack_codes(codes, bits), parts, bits), codes.int())
