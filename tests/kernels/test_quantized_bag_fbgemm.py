"""Rows to and from FBGEMM's own quantisers and lookup, where FBGEMM is installed."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("fbgemm_gpu")

from recemb.kernels.quantized_bag import (
    dequantize_rows,
    from_fbgemm,
    quantize_rows,
    quantized_bag,
    to_fbgemm,
)

BITS = [8, 4, 2]
WIDTH = 24
ROUNDING = 1e-6  # code * scale + bias of order one, once fused and once in two float32 steps
FLOAT16_UNIT = 2.0**-11


@pytest.fixture
def weight() -> Tensor:
    """Return rows (9, WIDTH), one of them constant."""
    rows = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(5))
    rows[3] = 0.25
    return rows


@pytest.mark.parametrize("bits", BITS)
def test_fbgemms_rows_dequantise_to_what_fbgemm_says(weight: Tensor, bits: int) -> None:
    theirs = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(weight, bits)
    ours = dequantize_rows(from_fbgemm(theirs, WIDTH, bits, layout="float16_last"), WIDTH, bits)
    expected = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(theirs, bits)
    torch.testing.assert_close(ours, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("bits", BITS)
def test_fbgemm_dequantises_our_rows_to_what_we_say(weight: Tensor, bits: int) -> None:
    packed = quantize_rows(weight, bits)
    theirs = to_fbgemm(packed, WIDTH, bits, layout="float16_last")
    found = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(theirs, bits)
    torch.testing.assert_close(found, dequantize_rows(packed, WIDTH, bits), rtol=0, atol=ROUNDING)


def test_float32_scale_and_bias_lose_what_float16_cannot_hold(weight: Tensor) -> None:
    theirs = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(weight)
    ours = dequantize_rows(from_fbgemm(theirs, WIDTH, 8, layout="float32_last"), WIDTH, 8)
    expected = torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(theirs)
    low, high = weight.aminmax(dim=1, keepdim=True)
    assert ((ours - expected).abs() <= FLOAT16_UNIT * (low.abs() + high - low) + ROUNDING).all()


def test_fbgemm_reads_our_rows_with_float32_scale_and_bias(weight: Tensor) -> None:
    packed = quantize_rows(weight, 8)
    theirs = to_fbgemm(packed, WIDTH, 8, layout="float32_last")
    found = torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(theirs)
    torch.testing.assert_close(found, dequantize_rows(packed, WIDTH, 8), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("bits", BITS)
def test_our_quantiser_is_as_near_as_fbgemms(weight: Tensor, bits: int) -> None:
    theirs = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(weight, bits)
    found = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(theirs, bits)
    ours = dequantize_rows(quantize_rows(weight, bits), WIDTH, bits)
    assert (ours - weight).abs().max() <= (found - weight).abs().max() * (1 + FLOAT16_UNIT)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("alignment", [1, 16])
def test_lookup_equals_fbgemms_on_the_same_rows(
    weight: Tensor, bits: int, pooling: str, alignment: int
) -> None:
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
        EmbeddingLocation,
        PoolingMode,
    )
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
        IntNBitTableBatchedEmbeddingBagsCodegen,
    )

    lookup = IntNBitTableBatchedEmbeddingBagsCodegen(
        [("", len(weight), WIDTH, getattr(SparseType, f"INT{bits}"), EmbeddingLocation.HOST)],
        pooling_mode=PoolingMode.SUM if pooling == "sum" else PoolingMode.MEAN,
        device="cpu",
        output_dtype=SparseType.FP32,
        row_alignment=alignment,
    )
    lookup.initialize_weights()
    packed = quantize_rows(weight, bits)
    rows = to_fbgemm(packed, WIDTH, bits, layout="float16_first", row_alignment=alignment)
    table, _ = lookup.split_embedding_weights(split_scale_shifts=False)[0]
    table.copy_(rows)
    values, offsets = torch.tensor([0, 8, 3, 3, 5], dtype=torch.int32), torch.tensor([0, 2, 2, 5])
    expected = lookup(values, offsets.int())
    found = quantized_bag(packed, values, offsets, width=WIDTH, bits=bits, pooling=pooling)
    torch.testing.assert_close(found[:, 0], expected, rtol=ROUNDING, atol=5 * ROUNDING)
    assert torch.equal(from_fbgemm(table, WIDTH, bits, layout="float16_first"), packed)
