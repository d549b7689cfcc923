"""Tables in float16 and bfloat16: float32 vectors and sums, stochastic rounding of updates."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables import rounding as rounding_module
from recemb.tables.full import full_tables
from recemb.tables.optimizer import KINDS, TableOptimizer
from recemb.tables.rounding import Rounding
from recemb.tables.spec import TableSpec

HALVES = ["float16", "bfloat16"]
NUM_ROWS, WIDTH = 50, 8
SPEC = TableSpec(
    name="t", num_embeddings=NUM_ROWS, embedding_dim=WIDTH, feature_names=("f",), pooling="sum"
)


def features(values, lengths):
    return KeyedJaggedTensor(
        keys=["f"], values=torch.tensor(values), lengths=torch.tensor(lengths, dtype=torch.int32)
    )


def tables_of(dtype, **changes):
    return full_tables([SPEC], optimizer=TableOptimizer(**changes), dtype=dtype, init_std=1.0)


@pytest.mark.parametrize("dtype", HALVES)
def test_vectors_are_float32_sums_of_widened_rows(dtype):
    tables = tables_of(dtype)
    ids = list(range(NUM_ROWS))
    found = tables(features([*ids, 3], [NUM_ROWS, 1])).values()
    rows = tables.table("t")
    assert rows.dtype == getattr(torch, dtype)
    assert found.dtype == torch.float32
    # Fifty terms in float32; a sum in half precision would be off by a thousandth.
    torch.testing.assert_close(found[0], rows.double().sum(0).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1], rows[3].float())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_float32_step_to_within_one_ulp(dtype, kind):
    half = tables_of(dtype, kind=kind, learning_rate=0.1, eps=1e-3)
    single = tables_of("float32", kind=kind, learning_rate=0.1, eps=1e-3)
    single.table("t").copy_(half.table("t"))
    batch, grad = features([1, 2, 2, 7], [1, 2, 1]), torch.randn(3, WIDTH)
    for tables in (half, single):
        tables(batch).values().backward(grad)
    expected = single.table("t")
    ulp = torch.finfo(getattr(torch, dtype)).eps * expected.abs().clamp(min=1e-3)
    assert ((half.table("t").float() - expected).abs() <= ulp).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_small_updates_arrive_on_average(dtype):
    """Steps of a hundredth of an ulp, which rounding to nearest would lose one and all."""
    tables = tables_of(dtype, kind="sgd", learning_rate=1.0)
    tables.table("t").fill_(1.5)
    ulp, num_steps = torch.finfo(getattr(torch, dtype)).eps, 400
    ids = list(range(NUM_ROWS))
    for _ in range(num_steps):
        step = torch.full((NUM_ROWS, WIDTH), -0.01 * ulp)
        tables(features(ids, [1] * NUM_ROWS)).values().backward(step)
    moved = float((tables.table("t").double() - 1.5).mean()) / ulp
    # 4 ulps expected; 400 values, each a sum of 400 draws of variance 0.01 * 0.99: 0.1 ulp.
    assert abs(moved - 4.0) < 0.5


@pytest.mark.parametrize("dtype", HALVES)
def test_untouched_rows_keep_their_bits(dtype):
    tables = tables_of(dtype)
    before = tables.table("t").clone()
    tables(features([4], [1])).values().sum().backward()
    others = torch.arange(NUM_ROWS) != 4
    assert torch.equal(tables.table("t")[others], before[others])
    assert not torch.equal(tables.table("t")[4], before[4])


@pytest.mark.parametrize("dtype", HALVES)
def test_training_goes_on_bit_by_bit_after_a_state_dict_round_trip(dtype):
    one, two = tables_of(dtype), tables_of(dtype)
    batch = features([1, 2, 2, 7], [1, 2, 1])
    one(batch).values().sum().backward()
    two.load_state_dict(one.state_dict())
    for tables in (one, two):
        tables(batch).values().pow(2).sum().backward()
    assert torch.equal(one.table("t"), two.table("t"))


@pytest.mark.parametrize("dtype", HALVES)
def test_visiting_all_rows_moves_touched_rows_alike(dtype):
    touched = tables_of(dtype, kind="sgd", learning_rate=0.1)
    visited = tables_of(dtype, kind="sgd", learning_rate=0.1, rows="all")
    batch = features([1, 2, 2, 7], [1, 2, 1])
    for tables in (touched, visited):
        tables(batch).values().backward(torch.ones(3, WIDTH))
    assert torch.equal(touched.table("t"), visited.table("t"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compiled_rounding_has_the_same_bits(monkeypatch, dtype):
    values = torch.randn(500, WIDTH) * torch.logspace(-9, 5, 500).unsqueeze(1)
    values[:3] = torch.tensor([0.0, float("inf"), float("nan")]).unsqueeze(1)
    rounding = Rounding(dtype=dtype, seed=2**32 - 5)
    rows = torch.arange(500) * 10**9
    expected = rounding.apply(values, rows)
    monkeypatch.setattr(rounding_module, "COMPILE_FROM", 1)
    found = rounding.apply(values, rows)
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))
