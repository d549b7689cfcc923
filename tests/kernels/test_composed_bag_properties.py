"""The composed bag's kernels agree with the float64 reference on drawn bags and programs."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.kernels.composed_bag import reference

FLOAT32_ROUNDING = 1e-4  # sums of up to some tens of products of three, added in float32
NUM_IDS = 12


@st.composite
def lookups(draw: st.DrawFn) -> tuple[list[object], torch.Generator]:
    """Return the arguments of the op, float64, and a generator for more."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    num_features, num_factors = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    examples, width = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 8]))
    offsets, num_ids = None, num_features * examples
    if draw(st.booleans()):
        bags = num_features * examples
        lengths = draw(st.lists(st.integers(0, 3), min_size=bags, max_size=bags))
        offsets, num_ids = torch.tensor([0, *lengths]).cumsum(0), sum(lengths)
    shape = (num_features, num_factors)
    num_rows = torch.randint(1, 6, shape, generator=g)
    ends = num_rows.flatten().cumsum(0)
    digits, combine = draw(st.booleans()), draw(st.sampled_from(["product", "sum", "weighted"]))
    importance = torch.randn(NUM_IDS * num_features, num_factors, generator=g, dtype=torch.float64)
    is_weighted = combine == "weighted"
    arguments = [
        torch.randn(int(ends[-1]), width, generator=g, dtype=torch.float64),
        torch.randint(-3, NUM_IDS + 3, (num_ids,), generator=g),
        offsets,
        (ends - num_rows.flatten()).view(shape),
        num_rows,
        torch.randint(1, 5, shape, generator=g) if digits else None,
        None if digits else torch.randint(2**32, shape, generator=g),
        importance if is_weighted else None,
        NUM_IDS * torch.arange(num_features + 1) if is_weighted else None,
        torch.randn(num_ids, generator=g, dtype=torch.float64) if draw(st.booleans()) else None,
        combine == "product",
        draw(st.booleans()),
    ]
    return arguments, g


def lowered(arguments: list[object]) -> list[object]:
    return [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(lookups())
def test_kernels_agree_with_the_reference(drawn: tuple[list[object], torch.Generator]) -> None:
    from recemb.kernels.composed_bag import kernel

    if torch.cuda.is_available():
        pytest.skip("hardware: the interpreter is off where there is a CUDA device")
    arguments, g = drawn
    expected = reference.forward(*arguments)
    found = kernel.composed_bag_forward(*lowered(arguments))
    close = {"atol": FLOAT32_ROUNDING, "rtol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(found, expected, **close)
    grad = torch.randn(expected.shape, generator=g, dtype=torch.float64)
    expected_gradients = reference.backward(grad, *arguments)
    found_gradients = kernel.composed_bag_backward(grad.float(), *lowered(arguments))
    for ours, theirs in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **close)
