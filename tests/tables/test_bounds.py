"""Ids out of range."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.full import full_tables
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

SPECS = [
    TableSpec(name="item", num_embeddings=5, embedding_dim=4, feature_names=("brand",)),
    TableSpec(name="place", num_embeddings=3, embedding_dim=4, feature_names=("city",)),
]


def one_hot(brand, city, dtype=torch.int64):
    return KeyedJaggedTensor(
        keys=["brand", "city"],
        values=torch.tensor([*brand, *city], dtype=dtype),
        lengths=torch.ones(len(brand) + len(city), dtype=torch.int32),
    )


def jagged(brand, city):
    return KeyedJaggedTensor(
        keys=["brand", "city"],
        values=torch.tensor([*brand, *city]),
        lengths=torch.tensor([len(brand), 0, 0, len(city)], dtype=torch.int32),
    )


@pytest.mark.parametrize("make", [one_hot, jagged])
@pytest.mark.parametrize("bad", [5, 1042, -1, 2**40])
def test_the_error_names_feature_table_value_rows_and_position(make, bad):
    message = (
        f"table 'item': feature 'brand' has id {bad} at position 2 of its values, but the table "
        "has 5 rows; 1 of 3 ids are out of range"
    )
    with pytest.raises(ValueError, match=message):
        full_tables(SPECS)(make([0, 4, bad], [0, 1, 2]))


@pytest.mark.parametrize("make", [one_hot, jagged])
def test_each_feature_has_its_own_number_of_rows(make):
    with pytest.raises(ValueError, match="table 'place': feature 'city' has id 4 at position 0"):
        full_tables(SPECS)(make([0, 4], [4, 1]))


@pytest.mark.parametrize("make", [one_hot, jagged])
@pytest.mark.parametrize("policy", ["error", "oov", "hash", "clamp"])
def test_ids_in_range_are_left_alone(make, policy):
    features = make([0, 4, 2], [2, 0, 1])
    tables = full_tables(SPECS, bounds=policy)
    assert torch.equal(tables(features).values(), full_tables(SPECS)(features).values())
    assert tables.out_of_range_counts() == {"brand": 0, "city": 0}


def test_oov_reads_row_0():
    found = full_tables(SPECS, bounds="oov")(one_hot([4, 5, -7], [0, 1, 2]))
    expected = full_tables(SPECS)(one_hot([4, 0, 0], [0, 1, 2]))
    assert torch.equal(found.values(), expected.values())


def test_clamp_reads_the_nearest_row():
    found = full_tables(SPECS, bounds="clamp")(one_hot([3, 9, -7], [9, 1, -1]))
    expected = full_tables(SPECS)(one_hot([3, 4, 0], [2, 1, 0]))
    assert torch.equal(found.values(), expected.values())


def test_hash_spreads_unknown_ids_over_all_rows():
    num = 6000
    spec = TableSpec(name="t", num_embeddings=3, embedding_dim=1, feature_names=("f",))
    tables = full_tables([spec], bounds="hash", optimizer=TableOptimizer(kind="sgd"))
    features = KeyedJaggedTensor(
        keys=["f"], values=torch.arange(100, 100 + num), lengths=torch.ones(num, dtype=torch.int32)
    )
    before = tables.rows("f", torch.arange(3)).clone()
    tables.set_learning_rate(1.0)
    tables(features).values().sum().backward()
    hits = (before - tables.rows("f", torch.arange(3))).view(-1)
    # Three rows share 6000 hits evenly: standard deviation 37 each; float32 is exact to 1e-3 here.
    assert float(hits.sum()) == pytest.approx(num, abs=0.01)
    assert all(abs(float(h) - num / 3) < 5 * 37 for h in hits)


def test_replaced_ids_are_counted_by_key():
    tables = full_tables(SPECS, bounds="clamp")
    for _ in range(2):
        tables(one_hot([3, 9, -7], [9, 1, 2]))
    assert tables.out_of_range_counts() == {"brand": 4, "city": 2}


def test_int32_ids_are_checked_too():
    with pytest.raises(ValueError, match="feature 'brand' has id 7"):
        full_tables(SPECS)(one_hot([0, 7], [0, 0], dtype=torch.int32))


def test_sequences_are_checked():
    spec = TableSpec(
        name="item", num_embeddings=5, embedding_dim=4, feature_names=("h",), pooling="none"
    )
    features = KeyedJaggedTensor(
        keys=["h"], values=torch.tensor([1, 8]), lengths=torch.tensor([2], dtype=torch.int32)
    )
    with pytest.raises(ValueError, match="table 'item': feature 'h' has id 8 at position 1"):
        full_tables([spec]).sequences(features)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="bounds must be one of error, oov, hash, clamp"):
        full_tables(SPECS, bounds="wrap")
