"""Quantised rows and their pooled lookup on drawn tables, bags and bits."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.kernels.quantized_bag import (
    FBGEMM_LAYOUTS,
    dequantize_rows,
    from_fbgemm,
    quantize_rows,
    reference,
    to_fbgemm,
)

FLOAT32_ROUNDING = 1e-4  # sums of up to some ten products of order one to ten, added in float32
FLOAT16_UNIT = 2.0**-11  # half a unit in the last place of 11 bits, relative
LEAST_FLOAT16 = 2.0**-24

DRAWS = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Return weights (R, D) and bits that fit them."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    bits = draw(st.sampled_from([8, 4, 2]))
    width = draw(st.integers(1, 9)) * (8 // bits)
    scale, shift = 10.0 ** draw(st.integers(-3, 3)), draw(st.sampled_from([-50.0, 0.0, 0.3]))
    rows = torch.randn(draw(st.integers(0, 4)), width, generator=g) * scale + shift
    return rows, bits


@st.composite
def lookups(draw: st.DrawFn) -> list[object]:
    """Return the arguments of the op, with float64 weights and result."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    weight, bits = draw(tables())
    num_features, examples = draw(st.integers(1, 2)), draw(st.integers(0, 3))
    offsets, num_ids = None, num_features * examples
    if draw(st.booleans()):
        bags = num_features * examples
        lengths = draw(st.lists(st.integers(0, 4), min_size=bags, max_size=bags))
        offsets, num_ids = torch.tensor([0, *lengths]).cumsum(0), sum(lengths)
    values = torch.randint(-2, max(len(weight), 1), (num_ids,), generator=g)
    if not len(weight):
        values.fill_(-1)
    is_weighted = draw(st.booleans())
    weights = torch.randn(num_ids, generator=g, dtype=torch.float64) if is_weighted else None
    packed = quantize_rows(weight / weight.abs().amax().clamp_min(1) if len(weight) else weight,
                           bits)  # fmt: skip
    return [packed, values, offsets, weights, weight.shape[1], bits, num_features,
            draw(st.booleans()), torch.float64]  # fmt: skip


@settings(max_examples=12, deadline=None, derandomize=True)
@given(lookups())
def test_kernel_agrees_with_the_reference(drawn: list[object]) -> None:
    from recemb.kernels.quantized_bag import kernel

    if torch.cuda.is_available():
        pytest.skip("hardware: the interpreter is off where there is a CUDA device")
    expected = reference.forward(*drawn)
    narrow = [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in drawn]
    found = kernel.quantized_bag_forward(*narrow[:-1], torch.float32)
    close = {"atol": FLOAT32_ROUNDING, "rtol": 1e-4}
    torch.testing.assert_close(found.double(), expected, **close)


@DRAWS
@given(tables())
def test_element_is_within_half_a_step(drawn: tuple[Tensor, int]) -> None:
    weight, bits = drawn
    if not len(weight):
        return
    error = dequantize_rows(quantize_rows(weight, bits), weight.shape[1], bits) - weight
    span = (weight.amax(1) - weight.amin(1)).double()
    slack = FLOAT16_UNIT * (span + 2 * weight.abs().amax(1)) + 2**bits * LEAST_FLOAT16
    assert (error.abs().amax(1) <= span / (2**bits - 1) / 2 + slack).all()


@DRAWS
@given(tables(), st.sampled_from(FBGEMM_LAYOUTS), st.sampled_from([1, 4, 16]))
def test_rows_return_from_fbgemms_layout_unchanged(
    drawn: tuple[Tensor, int], layout: str, alignment: int
) -> None:
    weight, bits = drawn
    width = weight.shape[1]
    if (layout == "float32_last" and bits != 8) or (layout[:7] == "float16" and width * bits % 16):
        return
    packed = quantize_rows(weight, bits)
    more = {"row_alignment": alignment} if layout == "float16_first" else {}
    theirs = to_fbgemm(packed, width, bits, layout=layout, **more)
    assert torch.equal(from_fbgemm(theirs, width, bits, layout=layout), packed)


@DRAWS
@given(st.sampled_from([8, 4, 2]), st.integers(1, 9), st.integers(0, 3))
def test_codes_return_from_planes_unchanged(bits: int, groups: int, rows: int) -> None:
    codes = torch.randint(2**bits, (rows, groups * 8 // bits), dtype=torch.uint8)
    assert torch.equal(reference.unpack_planes(reference.pack_planes(codes, bits), bits), codes)
