"""ROBE: the published budgets, the formula, sharing, what a loaded seed does."""

import numpy as np
import pytest
import torch

from recemb.ids.hashing import hash_rows, hash_seed
from recemb.methods.robe import ROBE, FlatArray
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec

# Values of the array, from the study's formula: the whole part of ratio * ids * width.
BUDGETS = [
    ("criteo", 0.5, 270_100_616),
    ("criteo", 0.25, 135_050_308),
    ("criteo", 0.2, 108_040_246),
    ("criteo", 0.1, 54_020_123),
    ("criteo", 0.05, 27_010_061),
    ("criteo", 0.01, 5_402_012),
    ("criteo", 0.005, 2_701_006),
    ("criteo", 0.002, 1_080_402),
    ("criteo", 0.001, 540_201),
    ("criteo", 0.0001, 54_020),
    ("avazu", 0.5, 75_595_560),
    ("avazu", 0.25, 37_797_780),
    ("avazu", 0.2, 30_238_224),
    ("avazu", 0.1, 15_119_112),
    ("avazu", 0.05, 7_559_556),
    ("avazu", 0.01, 1_511_911),
    ("avazu", 0.005, 755_955),
    ("avazu", 0.002, 302_382),
    ("avazu", 0.001, 151_191),
    ("avazu", 0.0001, 15_119),
]
SPECS = [
    TableSpec(name="a", num_embeddings=2000, embedding_dim=6, feature_names=("f", "g")),
    TableSpec(name="b", num_embeddings=300, embedding_dim=6, feature_names=("h",)),
    TableSpec(name="w", num_embeddings=2000, embedding_dim=1, feature_names=("f",)),
]


def array(**changes):
    named = {
        "num_values": 50,
        "widths": {"a": 6, "w": 1},
        "chunk_size": 4,
        "is_signed": False,
        "hash_seed": 3,
        "std": 0.1,
        **changes,
    }
    source = FlatArray(**named)
    source.initialise(torch.Generator().manual_seed(0))
    return source


def build(method, ratio, seed=0):
    device = torch.device("cpu")
    return method.build(SPECS, {}, Budget(ratio=ratio), optimizer=None, seed=seed, device=device)


@pytest.mark.parametrize(("name", "ratio", "num_values"), BUDGETS)
def test_the_plan_is_that_of_the_published_budget(published_specs, name, ratio, num_values):
    plan = ROBE().plan(published_specs(name), {}, Budget(ratio=ratio))
    assert plan.is_feasible
    # The seed counts against the budget, as it is stored: 8 bytes, two values.
    assert plan.parameters["values"] == {"shared": num_values - 2}
    assert plan.storage.serve == {"weights": 4 * (num_values - 2), "hash_constants": 8}


@pytest.mark.parametrize("num_bytes", [100, 101, 102, 103, 104])
def test_the_budget_is_met_to_within_a_value(num_bytes):
    plan = ROBE().plan(SPECS, {}, Budget(num_bytes=num_bytes))
    assert num_bytes - 4 < plan.storage.serve_bytes <= num_bytes


def test_below_one_chunk_the_plan_is_infeasible_and_its_size_is_one_chunk():
    plan = ROBE(chunk_size=4).plan(SPECS, {}, Budget(num_bytes=20))
    assert not plan.is_feasible
    assert plan.storage.serve_bytes == 4 * 4 + 8


@pytest.mark.parametrize("scope", ["multiplexed", "per_feature"])
def test_where_all_tables_fit_nothing_is_hashed(scope):
    plan = ROBE(scope=scope).plan(SPECS, {}, Budget(ratio=1.0))
    assert plan.parameters["values"] == {}
    assert plan.ratio == 1.0


def test_separate_arrays_have_sizes_in_proportion():
    sizes = ROBE(scope="per_feature").plan(SPECS, {}, Budget(ratio=0.1)).parameters["values"]
    for spec in SPECS:
        expected = 0.1 * spec.num_embeddings * spec.embedding_dim
        # The three seeds take six values, and rounding less than one.
        assert expected - 7 < sizes[spec.name] <= expected


def test_an_array_longer_than_hashes_reach_is_refused():
    specs = [
        TableSpec(name=f"t{i}", num_embeddings=2**31, embedding_dim=4, feature_names=(f"f{i}",))
        for i in range(2)
    ]
    with pytest.raises(ValueError, match="hashes reach 2,147,483,647"):
        ROBE().plan(specs, {}, Budget(ratio=0.9))


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 4, 6, 100])
def test_rows_are_chunks_of_the_array(chunk_size, is_signed):
    source = array(chunk_size=chunk_size, is_signed=is_signed)
    ids = torch.tensor([0, 5, 1999, 2**40])
    values = source.values.detach().numpy()
    rows = source("a", ids).detach().numpy()
    length = min(chunk_size, 6)
    for d in range(6):
        start = hash_rows(ids.numpy(), hash_seed(3, "a", d // length), 50)
        expected = values[(start + d % length) % 50]
        if is_signed:
            np.testing.assert_array_equal(np.abs(rows[:, d]), np.abs(expected))
        else:
            np.testing.assert_array_equal(rows[:, d], expected)


def test_signs_are_balanced():
    source = array(num_values=40_000, is_signed=True, chunk_size=1)
    source.values.detach().fill_(1.0)
    rows = source("a", torch.arange(20_000)).detach()
    # The mean of n fair signs has deviation 1 / sqrt(n).
    assert (rows.mean(dim=0).abs() < 4 * 20_000**-0.5).all()


def test_the_same_id_of_two_tables_has_different_rows():
    source = array(num_values=5000, widths={"a": 6, "b": 6})
    ids = torch.arange(200)
    is_same = (source("a", ids) == source("b", ids)).all(dim=1)
    assert not is_same.any()


def test_tables_of_other_features_read_the_same_values():
    tables = build(ROBE(), 0.002)
    source = tables.sources["shared"]
    for key in tables.keys:
        source.values.grad = None
        tables.rows(key, torch.arange(300)).sum().backward()
        # 28 values and 300 rows: each value is read.
        assert (source.values.grad != 0).all()


@pytest.mark.parametrize("method", [ROBE(), ROBE(scope="per_feature", is_signed=True)], ids=str)
def test_initial_rows_have_the_deviation_of_the_largest_table(method):
    tables = build(method, 0.5)
    rows = tables.rows("f@a", torch.arange(2000)).detach()
    assert float(rows.std()) == pytest.approx((2000 * 3) ** -0.5, rel=0.05)


def test_gradients_are_those_of_finite_differences():
    source = array(is_signed=True).double()
    ids = torch.tensor([0, 3, 3, 1999])

    def rows(values):
        return torch.func.functional_call(source, {"values": values}, ("a", ids))

    assert torch.autograd.gradcheck(rows, source.values.detach().clone().requires_grad_())


def test_a_loaded_state_brings_its_hash_functions():
    one, two = build(ROBE(hash_seed=1), 0.1), build(ROBE(hash_seed=2), 0.1)
    ids = torch.arange(50)
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.rows("h", ids), one.rows("h", ids))


@pytest.mark.parametrize(("changes", "message"), [
    ({"chunk_size": 0}, "chunk_size must be at least 1"),
    ({"scope": "all"}, "scope must be multiplexed or per_feature"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ROBE(**changes)
