"""Frequency-based double hashing: who has a row, and what the others sum."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.ids.hashing import hash_rows_torch, hash_seed
from recemb.methods.frequency_double_hash import FrequencyDoubleHash
from recemb.tables.initial import Initial
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

NUM_IDS = 4000
SPEC = TableSpec(name="a", num_embeddings=NUM_IDS, embedding_dim=16, feature_names=("f",))
COUNTS = torch.randint(0, 10**9, (NUM_IDS,), generator=torch.Generator().manual_seed(1))
BY_COUNT = torch.sort(COUNTS, descending=True, stable=True).indices


def build(spec=SPEC, counts=COUNTS, ratio=0.25, **settings):
    return FrequencyDoubleHash(**settings).build(
        [spec],
        {"f": counts},
        Budget(ratio=ratio),
        optimizer=TableOptimizer(kind="sgd", learning_rate=0.5),
        seed=1,
        device=torch.device("cpu"),
    )


def test_frequent_ids_have_rows_of_their_own_in_the_order_of_their_counts():
    tables = build()
    head = tables.table("a_head")
    assert torch.equal(tables.rows("f", BY_COUNT[: len(head)]), head)


def test_rare_ids_are_the_sum_of_two_hashed_rows():
    tables = build()
    head, shared = tables.table("a_head"), tables.table("a")
    ranks = torch.arange(len(head), NUM_IDS)
    parts = [shared[hash_rows_torch(ranks, hash_seed(0, "f", j), len(shared))] for j in range(2)]
    assert torch.equal(tables.rows("f", BY_COUNT[len(head) :]), parts[0] + parts[1])


def test_half_of_the_rows_are_the_head_and_ranks_count_against_the_budget():
    tables = build()
    head, shared = len(tables.table("a_head")), len(tables.table("a"))
    assert abs(head - shared) <= 1
    allowed = Budget(ratio=0.25).allowed_bytes([SPEC])
    assert 0 <= allowed - (64 * (head + shared) + 4 * NUM_IDS) < 64


def test_both_kinds_of_vectors_have_the_full_table_s_deviation():
    tables = build(ratio=0.5)
    vectors = tables.rows("f", BY_COUNT)
    num_head = len(tables.table("a_head"))
    target = Initial.dlrm(NUM_IDS).std
    assert float(vectors[:num_head].std()) == pytest.approx(target, rel=0.05)
    assert float(vectors[num_head:].std()) == pytest.approx(target, rel=0.05)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_a_bag_of_frequent_and_rare_ids_pools_their_vectors(pooling):
    spec = TableSpec(
        name="a", num_embeddings=NUM_IDS, embedding_dim=16, feature_names=("f",), pooling=pooling
    )
    tables = build(spec)
    bag = torch.cat([BY_COUNT[:2], BY_COUNT[-3:]])
    features = KeyedJaggedTensor(keys=["f"], values=bag, lengths=torch.tensor([5, 0]))
    vectors = tables.rows("f", bag)
    expected = vectors.mean(dim=0) if pooling == "mean" else vectors.sum(dim=0)
    found = tables(features).values()
    # Five float32 terms in another order.
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-7)
    assert not found[1].any()


def test_a_step_moves_a_frequent_id_s_row_alone():
    tables = build()
    before = {name: tables.table(name).clone() for name in ("a", "a_head")}
    features = KeyedJaggedTensor(keys=["f"], values=BY_COUNT[3:4], lengths=torch.tensor([1]))
    tables(features).values().backward(torch.ones(1, 16))
    assert torch.equal(tables.table("a"), before["a"])
    moved = (tables.table("a_head") != before["a_head"]).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [3]


def test_no_head_is_double_hashing():
    tables = build(head_share=0.0)
    assert [t.name for t in tables.plan.tables] == ["a"]
    assert tables.plan.outputs[0].is_linear


def test_without_statistics_ids_are_ranks():
    tables = FrequencyDoubleHash().build(
        [SPEC], {}, Budget(ratio=0.25), optimizer=None, seed=1, device=torch.device("cpu")
    )
    head = tables.table("a_head")
    assert torch.equal(tables.rows("f", torch.arange(len(head))), head)


def test_below_the_ranks_bytes_the_plan_is_infeasible_and_says_the_floor():
    plan = FrequencyDoubleHash().plan([SPEC], {}, Budget(ratio=0.06))
    assert not plan.is_feasible
    # 4 bytes of 64 for each rank, and one row.
    assert plan.ratio == pytest.approx(1 / 16 + 1 / NUM_IDS)


@pytest.mark.parametrize("wrong", [{"head_share": 1.0}, {"lookups": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"head_share must be in \[0, 1\) and lookups at least 1"):
        FrequencyDoubleHash(**wrong)
