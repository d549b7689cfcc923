"""The masked bag's kernels agree with the float64 reference on drawn bags, masks and options."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.kernels.masked_bag import reference

FLOAT32_ROUNDING = 5e-5  # sums of up to some tens of products of order one, added in float32
NUM_ROWS = 9


@st.composite
def lookups(draw: st.DrawFn) -> tuple[list[object], torch.Generator]:
    """Return the arguments of the op, float64, and a generator for more."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    num_features = draw(st.integers(1, 3))
    examples = draw(st.integers(1, 4))
    width = draw(st.sampled_from([1, 2, 5, 16]))
    offsets, num_ids = None, num_features * examples
    if draw(st.booleans()):
        bags = num_features * examples
        lengths = draw(st.lists(st.integers(0, 4), min_size=bags, max_size=bags))
        offsets, num_ids = torch.tensor([0, *lengths]).cumsum(0), sum(lengths)
    weight = torch.randn(NUM_ROWS, width, generator=g, dtype=torch.float64)
    norm = draw(st.sampled_from([1, 2]))
    has_thresholds, widths = draw(st.booleans()), draw(st.sampled_from(["", "id", "feature"]))
    # Multiples of a half: no norm of rows of normal numbers lies within rounding of one.
    thresholds = torch.randint(0, 2 * width + 1, (num_features,), generator=g) / 2
    by_id = torch.randint(0, width + 1, (num_ids,), generator=g)
    by_feature = torch.randint(0, width + 1, (num_features,), generator=g)
    arguments = [
        weight,
        torch.randint(-1, NUM_ROWS + 1, (num_ids,), generator=g),
        offsets,
        thresholds.double() if has_thresholds else None,
        by_id if widths == "id" else None,
        by_feature if widths == "feature" else None,
        torch.randn(num_ids, generator=g, dtype=torch.float64) if draw(st.booleans()) else None,
        num_features,
        draw(st.booleans()),
        norm,
        bool(has_thresholds and widths and draw(st.booleans())),
    ]
    return arguments, g


def lowered(arguments: list[object]) -> list[object]:
    return [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(lookups())
def test_kernels_agree_with_the_reference(drawn: tuple[list[object], torch.Generator]) -> None:
    from recemb.kernels.masked_bag import kernel

    if torch.cuda.is_available():
        pytest.skip("hardware: the interpreter is off where there is a CUDA device")
    arguments, g = drawn
    expected = reference.forward(*arguments)
    found = kernel.masked_bag_forward(*lowered(arguments))
    close = {"atol": FLOAT32_ROUNDING, "rtol": 1e-4}
    torch.testing.assert_close(found.double(), expected, **close)
    grad = torch.randn(expected.shape, generator=g, dtype=torch.float64)
    expected_gradients = reference.backward(grad, *arguments)
    found_gradients = kernel.masked_bag_backward(grad.float(), *lowered(arguments))
    for ours, theirs in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours.double(), theirs, **close)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lookups())
def test_masks_commute_with_pooling_rows_one_by_one(
    drawn: tuple[list[object], torch.Generator],
) -> None:
    arguments, _ = drawn
    values, offsets, mean = arguments[1], arguments[2], arguments[8]
    if offsets is None or mean:
        return
    assert isinstance(offsets, Tensor)
    assert isinstance(values, Tensor)
    # A sum over a bag is the sum of the sums over its first id and its others.
    both = reference.forward(*arguments)
    starts, ends = offsets[:-1], offsets[1:]
    is_first = torch.zeros(len(values), dtype=torch.bool)
    is_first[starts[ends > starts]] = True
    parts = []
    for part in (is_first, ~is_first):
        alone = list(arguments)
        alone[1] = torch.where(part, values, -1)
        parts.append(reference.forward(*alone))
    torch.testing.assert_close(parts[0] + parts[1], both)
