"""Rows in a few bits, against FBGEMM's operators and the bound on the error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.tables.fbgemm_ops import is_available
from recemb.tables.row_codes import decode_rows, encode_rows, pack, unpack

BITS = (8, 4, 2)


def draw(num_rows: int, width: int, *, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_rows, width, generator=generator)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 63, 64])
def test_codes_that_are_packed_come_back(bits: int, width: int) -> None:
    codes = torch.randint(2**bits, (17, width), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (17, -(-width * bits // 8))
    assert torch.equal(unpack(packed, width, bits), codes)


def test_the_first_code_is_in_the_lowest_bits() -> None:
    assert pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4).tolist() == [[0x21, 0x03]]
    assert pack(torch.tensor([[1, 2, 3, 0]], dtype=torch.uint8), 2).tolist() == [[0b00111001]]


@pytest.mark.skipif(not is_available(), reason="FBGEMM is not installed")
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("width", [8, 16, 64, 104])
@pytest.mark.parametrize("bits", BITS)
def test_rows_are_fbgemm_s(bits: int, width: int, scale: float) -> None:
    weight = draw(500, width, scale=scale)
    weight[1], weight[2] = 3.7, 0.0
    found = encode_rows(weight, bits)
    if bits == 8:
        fused = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(weight)
    else:
        fused = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(weight, bits)
    num_bytes = width * bits // 8
    header = torch.stack([found.scale, found.bias], dim=1).contiguous().view(torch.uint8)
    assert torch.equal(header, fused[:, num_bytes:])
    ours = unpack(found.codes, width, bits).int()
    theirs = unpack(fused[:, :num_bytes], width, bits).int()
    # FBGEMM's compiler fuses a product and a sum, which decides about ties of up to 255 units.
    most = 2**bits - 1
    span = found.scale.double() * most + (1e-8 if bits == 8 else 0)
    units = (weight.double() - found.bias.double().unsqueeze(1)) * (most / span).unsqueeze(1)
    is_tie = ((units % 1) - 0.5).abs() < 1e-3
    assert torch.equal(ours[~is_tie], theirs[~is_tie])
    assert int((ours - theirs).abs().max()) <= 1


# What rounding scale and bias moves the ends of a row's range: half a unit in the last place of
# float16, subnormal ones included, or of float32; and the 1e-8 that FBGEMM adds to an 8-bit range.
EPS = {8: 2.0**-22, 4: 2.0**-11, 2: 2.0**-11}
LEAST = {8: 1e-8, 4: 2.0**-24, 2: 2.0**-24}


@pytest.mark.parametrize("bits", BITS)
@settings(deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    width=st.integers(1, 40),
    size=st.floats(1e-6, 100),
    centre=st.floats(-50, 50),
)
def test_an_element_is_off_by_half_a_scale_at_most(
    bits: int, seed: int, width: int, size: float, centre: float
) -> None:
    weight = draw(8, width, seed=seed, scale=size) + centre
    found = encode_rows(weight, bits)
    scale, bias = found.scale.double().abs(), found.bias.double().abs()
    rounding = EPS[bits] * (bias + (2**bits - 1) * scale) + 2**bits * LEAST[bits]
    error = (weight.double() - decode_rows(found, width, bits)).abs()
    assert bool((error <= (scale / 2 + rounding).unsqueeze(1)).all())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(bits: int, value: float) -> None:
    weight = draw(3, 8)
    weight[1, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        encode_rows(weight, bits)


@pytest.mark.parametrize("bits", [4, 2])
def test_a_range_beyond_float16_is_refused_in_few_bits_alone(bits: int) -> None:
    weight = torch.tensor([[-1e6, 1e6]])
    with pytest.raises(ValueError, match="65504"):
        encode_rows(weight, bits)
    assert torch.allclose(decode_rows(encode_rows(weight, 8), 2, 8), weight)
