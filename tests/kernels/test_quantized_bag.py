"""Quantised rows: what rounding may lose, and the pooled lookup against float64."""

import itertools

import pytest
import torch
from torch import Tensor

from recemb.kernels.quantized_bag import (
    dequantize_rows,
    from_fbgemm,
    quantize_rows,
    quantized_bag,
    reference,
    to_fbgemm,
)

# Up to five products of order one, added in float32, then stored in the result's type.
ROUNDING = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
LENGTHS = {"one id": None, "ragged": [2, 0, 1, 5, 1, 3], "all empty": [0, 0, 0, 0]}


def table(width: int, rows: int = 7) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(width))


def bags(lengths: str, rows: int) -> tuple[Tensor, Tensor | None]:
    cuts = LENGTHS[lengths]
    offsets = None if cuts is None else torch.tensor([0, *cuts]).cumsum(0)
    num_ids = 6 if offsets is None else int(offsets[-1])
    return torch.randint(-1, rows, (num_ids,), generator=torch.Generator().manual_seed(1)), offsets


def by_definition(packed: Tensor, values: Tensor, offsets: Tensor | None, width: int, bits: int,
                  weights: Tensor | None, mean: bool) -> Tensor:  # fmt: skip
    """Return two features' bags by loops over bits, ids and bags, in float64."""
    planes = 8 // bits
    payload = width // planes
    cuts = list(range(len(values) + 1)) if offsets is None else offsets.tolist()
    out = torch.zeros(len(cuts) - 1, width, dtype=torch.float64)
    for bag, (start, stop) in enumerate(itertools.pairwise(cuts)):
        present = [i for i in range(start, stop) if values[i] >= 0]
        for i in present:
            row = packed[values[i]]
            scale, bias = row[-4:].view(torch.float16).double()
            codes = [(int(row[d % payload]) >> (bits * (d // payload))) % 2**bits
                     for d in range(width)]  # fmt: skip
            a = 1.0 if weights is None else float(weights[i])
            out[bag] += a * (torch.tensor(codes).double() * scale + bias)
        if mean:
            out[bag] /= max(len(present), 1)
    return out.view(2, -1, width).transpose(0, 1)


@pytest.mark.parametrize(("bits", "width"), [(8, 1), (8, 63), (4, 6), (4, 64), (2, 4), (2, 64)])
def test_quantised_element_is_within_half_a_step(bits: int, width: int) -> None:
    weight = table(width)
    steps = (weight.amax(1) - weight.amin(1)) / (2**bits - 1)
    error = (dequantize_rows(quantize_rows(weight, bits), width, bits) - weight).abs().amax(1)
    # float16 keeps 11 bits of scale and bias; the scale's error counts once per level.
    slack = 2.0**-11 * ((2**bits - 1) * steps + weight.abs().amax(1))
    assert (error <= steps / 2 + slack + 1e-6).all()


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_constant_row_is_exact(bits: int) -> None:
    weight = torch.full((2, 8), 0.25)
    assert torch.equal(dequantize_rows(quantize_rows(weight, bits), 8, bits), weight)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(
    ("bits", "width", "out", "index"),
    [(8, 63, torch.float32, torch.int64), (4, 6, torch.float16, torch.int32),
     (2, 64, torch.bfloat16, torch.int64), (2, 4, torch.float32, torch.int32)],
)  # fmt: skip
@pytest.mark.parametrize("weighted_mean", [False, True])
def test_kernel_equals_definition(
    lengths: str, bits: int, width: int, out: torch.dtype, index: torch.dtype,
    weighted_mean: bool, device: str,
) -> None:  # fmt: skip
    from recemb.kernels.quantized_bag import kernel

    packed = quantize_rows(table(width), bits)
    values, offsets = bags(lengths, 7)
    weights = torch.linspace(-1, 1, len(values)) if weighted_mean else None
    expected = by_definition(packed, values, offsets, width, bits, weights, weighted_mean)
    arguments = [packed, values.to(index), offsets, weights]
    arguments = [t if t is None else t.to(device) for t in arguments]
    rest = (width, bits, 2, weighted_mean, out)
    found = kernel.quantized_bag_forward(*arguments, *rest)
    assert found.dtype == out
    torch.testing.assert_close(found.cpu().double(), expected, rtol=ROUNDING[out],
                               atol=ROUNDING[out])  # fmt: skip
    assert torch.equal(found, kernel.quantized_bag_forward(*arguments, *rest))
    exact = reference.forward(packed, values, offsets, weights, *rest[:-1], torch.float64)
    torch.testing.assert_close(exact, expected)


@pytest.mark.slow  # 2.2 GB, which the interpreter copies
def test_rows_beyond_two_to_the_31_bytes_are_read(device: str) -> None:
    from recemb.kernels.quantized_bag import kernel

    num_rows = 2**31 // 16 + 3
    packed = torch.zeros(num_rows, 16, dtype=torch.uint8, device=device)
    rows = torch.arange(16.0).view(2, 8)
    packed[-2:] = quantize_rows(rows, 8).to(device)
    ids = torch.tensor([num_rows - 1, num_rows - 2, 0], device=device)
    found = kernel.quantized_bag_forward(packed, ids, None, None, 8, 8, 1, False, torch.float32)
    expected = dequantize_rows(quantize_rows(rows, 8), 8, 8)
    assert torch.equal(found[:2, 0].cpu(), expected.flip(0))
    assert not found[2].any()


def test_op_passes_opcheck() -> None:
    values, offsets = bags("ragged", 7)
    packed = quantize_rows(table(8), 4)
    torch.library.opcheck(
        torch.ops.recemb.quantized_bag,
        (packed, values, offsets, None, 8, 4, 2, True, torch.float16),
    )


def test_op_compiles_to_one_graph() -> None:
    values, offsets = bags("ragged", 7)
    packed = quantize_rows(table(8), 4)

    def look_up(packed: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        return quantized_bag(packed, values, offsets, width=8, bits=4, num_features=2)

    compiled = torch.compile(look_up, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(packed, values, offsets), look_up(packed, values, offsets))


@pytest.mark.parametrize(("bits", "width"), [(3, 8), (4, 7), (2, 6), (8, 0)])
def test_bits_that_do_not_fit_are_refused(bits: int, width: int) -> None:
    with pytest.raises(ValueError, match="quantize_rows"):
        quantize_rows(torch.zeros(1, width), bits)


def test_bias_beyond_half_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="65504"):
        quantize_rows(torch.tensor([[-1e6, 0.0]]), 8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_element_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantize_rows(torch.tensor([[bad, 0.0]]), 8)


@pytest.mark.parametrize(
    "weight", [torch.zeros(3), torch.zeros(1, 2, 4), torch.zeros(2, 4, dtype=torch.int8)]
)
def test_weights_of_another_form_are_refused(weight: Tensor) -> None:
    with pytest.raises(ValueError, match=r"quantize_rows: weight must be \(R, D\) floating"):
        quantize_rows(weight, 8)


@pytest.mark.parametrize(
    "packed",
    [torch.zeros(2, 16), torch.zeros(16, dtype=torch.uint8), torch.zeros(2, 12, dtype=torch.uint8)],
)
def test_tables_of_another_form_are_refused(packed: Tensor) -> None:
    ids = torch.tensor([0])
    with pytest.raises(ValueError, match=r"packed must be \(R, 16\) uint8 for width 8 in 4 bits"):
        quantized_bag(packed, ids, width=8, bits=4)
    with pytest.raises(ValueError, match=r"packed must be \(R, 16\) uint8 for width 8 in 4 bits"):
        dequantize_rows(packed, 8, 4)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"bits": 3}, "bits must be 2, 4 or 8, got 3"),
        ({"width": 7}, "positive multiple of 2, got 7; pad"),
        ({"out_dtype": torch.int32}, "out_dtype must be floating"),
        ({"pooling": "max"}, "pooling must be one of"),
        ({"num_features": 2}, "no multiple of num_features=2"),
        ({"weights": torch.ones(2)}, "one number per id"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(named: dict, message: str) -> None:
    given = {"width": 8, "bits": 4} | named
    with pytest.raises(ValueError, match=f"quantized_bag: .*{message}"):
        quantized_bag(torch.zeros(2, 16, dtype=torch.uint8), torch.tensor([0]), **given)


def test_kernel_refuses_a_result_it_cannot_write() -> None:
    from recemb.kernels.quantized_bag import kernel

    arguments = (torch.zeros(2, 16, dtype=torch.uint8), torch.tensor([0]), None, None)
    with pytest.raises(ValueError, match="run on a CPU"):
        kernel.quantized_bag_forward(*arguments, 8, 4, 1, False, torch.float64)


def test_table_without_rows_gives_zeros_to_absent_ids(device: str) -> None:
    from recemb.kernels.quantized_bag import kernel

    packed = quantize_rows(torch.zeros(0, 8), 4)
    assert dequantize_rows(packed, 8, 4).shape == (0, 8)
    arguments = (packed.to(device), torch.full((2,), -1, device=device), None, None)
    found = kernel.quantized_bag_forward(*arguments, 8, 4, 1, True, torch.float32)
    assert torch.equal(found.cpu(), torch.zeros(2, 1, 8))
    assert torch.equal(found.cpu(), quantized_bag(packed, torch.tensor([-1, -1]), width=8, bits=4))


def test_nothing_of_an_absent_id_is_seen(device: str) -> None:
    from recemb.kernels.quantized_bag import kernel

    packed = quantize_rows(torch.ones(2, 8), 4)
    ids, weights = torch.tensor([-1, 1]), torch.tensor([float("nan"), 2.0])
    offsets, expected = torch.tensor([0, 2]), torch.full((1, 1, 8), 2.0)
    named = {"width": 8, "bits": 4, "weights": weights, "pooling": "mean"}
    assert torch.equal(quantized_bag(packed, ids, offsets, **named), expected)
    moved = [t.to(device) for t in (packed, ids, offsets, weights)]
    found = kernel.quantized_bag_forward(*moved, 8, 4, 1, True, torch.float32)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("offsets", [None, torch.tensor([0])])
def test_no_bags_give_an_empty_result(offsets: Tensor | None, device: str) -> None:
    from recemb.kernels.quantized_bag import kernel

    packed, values = quantize_rows(table(8), 4), torch.zeros(0, dtype=torch.int64)
    found = quantized_bag(packed, values, offsets, width=8, bits=4, num_features=3)
    assert found.shape == (0, 3, 8)
    moved = [t if t is None else t.to(device) for t in (packed, values, offsets)]
    found = kernel.quantized_bag_forward(*moved, None, 8, 4, 3, False, torch.float16)
    assert found.shape == (0, 3, 8)


@pytest.mark.parametrize(
    ("width", "bits", "named", "message"),
    [
        (4, 4, {"layout": "last"}, "layout must be one of"),
        (4, 4, {"layout": "float32_last"}, "8 bits alone, got 4"),
        (2, 4, {"layout": "float16_last"}, "even number of payload bytes, got 1"),
        (4, 4, {"layout": "float16_last", "row_alignment": 16}, "row_alignment must be"),
        (4, 4, {"layout": "float16_first", "row_alignment": 0}, "row_alignment must be"),
    ],
)
def test_layout_that_fbgemm_has_not_is_refused(
    width: int, bits: int, named: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=f"to_fbgemm: .*{message}"):
        to_fbgemm(quantize_rows(torch.zeros(1, width), bits), width, bits, **named)


def test_fbgemms_rows_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"from_fbgemm: rows must be \(R, 12\) uint8"):
        from_fbgemm(torch.zeros(1, 13, dtype=torch.uint8), 8, 8, layout="float16_last")


def test_scale_of_fbgemms_beyond_half_precision_is_refused() -> None:
    header = torch.tensor([1e6, 0.0]).view(torch.uint8)
    rows = torch.cat([torch.zeros(8, dtype=torch.uint8), header]).view(1, -1)
    with pytest.raises(ValueError, match="65504"):
        from_fbgemm(rows, 8, 8, layout="float32_last")
