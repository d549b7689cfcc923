"""ROBE's kernels agree with the float64 reference on drawn bags, chunks and arrays."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.kernels.robe import reference

FLOAT32_ROUNDING = 5e-5  # sums of up to some tens of products of order one, added in float32


@st.composite
def lookups(draw: st.DrawFn) -> tuple[list[object], torch.Generator]:
    """Return the arguments of the op, float64, and a generator for more."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    num_features, examples = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    offsets, num_ids = None, num_features * examples
    if draw(st.booleans()):
        bags = num_features * examples
        lengths = draw(st.lists(st.integers(0, 3), min_size=bags, max_size=bags))
        offsets, num_ids = torch.tensor([0, *lengths]).cumsum(0), sum(lengths)
    aligned = draw(st.booleans())
    chunk_size = draw(st.integers(1, 5))
    num_chunks = draw(st.integers(1, 4))
    width = chunk_size * num_chunks
    if not aligned:
        width -= draw(st.integers(0, chunk_size - 1))
    size = chunk_size * draw(st.integers(1, 6)) if aligned else draw(st.integers(chunk_size, 30))
    signs = torch.randint(2**32, (num_features,), generator=g) if draw(st.booleans()) else None
    arguments = [
        torch.randn(size, generator=g, dtype=torch.float64),
        torch.randint(-(2**40), 2**40, (num_ids,), generator=g),
        offsets,
        torch.randint(2**32, (num_features, num_chunks), generator=g),
        signs,
        torch.randn(num_ids, generator=g, dtype=torch.float64) if draw(st.booleans()) else None,
        width,
        chunk_size,
        aligned,
        draw(st.booleans()),
    ]
    return arguments, g


def lowered(arguments: list[object]) -> list[object]:
    return [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(lookups())
def test_kernels_agree_with_the_reference(drawn: tuple[list[object], torch.Generator]) -> None:
    from recemb.kernels.robe import kernel

    if torch.cuda.is_available():
        pytest.skip("hardware: the interpreter is off where there is a CUDA device")
    arguments, g = drawn
    expected = reference.forward(*arguments)
    found = kernel.robe_bag_forward(*lowered(arguments))
    close = {"atol": FLOAT32_ROUNDING, "rtol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(found, expected, **close)
    grad = torch.randn(expected.shape, generator=g, dtype=torch.float64)
    expected_gradients = reference.backward(grad, *arguments)
    found_gradients = kernel.robe_bag_backward(grad.float(), *lowered(arguments))
    for ours, theirs in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **close)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lookups())
def test_elements_lie_in_the_array_and_chunks_are_contiguous(
    drawn: tuple[list[object], torch.Generator],
) -> None:
    params, values, _, seeds, _, _, width, chunk_size, aligned, _ = drawn[0]
    features = torch.zeros_like(values)
    starts = reference.starts_of(values, features, seeds, len(params), chunk_size, aligned)
    elements = reference.elements_of(starts, width, chunk_size, len(params))
    assert ((elements >= 0) & (elements < len(params))).all()
    column = torch.arange(1, width)
    is_inside = column % chunk_size != 0
    steps = elements.diff(dim=1) % len(params)
    assert (steps[:, is_inside] == 1 % len(params)).all()
    if aligned:
        assert (starts % chunk_size == 0).all()
