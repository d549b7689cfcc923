"""Binary-code hashing: which bits address what, and that no two ids have the same rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.methods.binary_code_hash import BinaryCodeHash
from recemb.tables.initial import Initial
from recemb.tables.method import Budget
from recemb.tables.program import run_program
from recemb.tables.spec import TableSpec


def spec_of(num_ids=4096, width=16, name="a"):
    return TableSpec(
        name=name, num_embeddings=num_ids, embedding_dim=width, feature_names=(f"{name}_id",)
    )


def plan_of(method, specs, ratio):
    return method.blueprint(specs, {}, Budget(ratio=ratio)).plan


def rows_of(plan, num_ids, output=0):
    """Return the table and the row (num_ids,) of each lookup."""
    lookups = plan.outputs[output].lookups
    return [(v.table, run_program(v.program, torch.arange(num_ids), {})) for v in lookups]


def build(method, specs, ratio):
    return method.build(
        specs, {}, Budget(ratio=ratio), optimizer=None, seed=1, device=torch.device("cpu")
    )


def test_blocks_in_succession_are_the_digits_of_the_id():
    # Twelve bits of which a block takes eight: 256 + 16 rows are the most below a tenth of 4096.
    (low, high) = rows_of(plan_of(BinaryCodeHash(), [spec_of()], 0.1), 4096)
    ids = torch.arange(4096)
    assert low[0] != high[0]
    assert torch.equal(low[1], ids % 256)
    assert torch.equal(high[1], ids // 256)


def test_skipping_blocks_take_every_other_bit():
    # Two blocks of six of the twelve bits: 64 + 64 rows.
    (first, second) = rows_of(plan_of(BinaryCodeHash(strategy="skip"), [spec_of()], 0.032), 4096)
    for i in (0b000000000001, 0b000001000100, 0b101010101010, 0b110000000011):
        bits = f"{i:012b}"
        assert int(first[1][i]) == int(bits[1::2], 2)
        assert int(second[1][i]) == int(bits[0::2], 2)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(101, 3000),
    st.sampled_from([0.5, 0.25, 0.1, 0.05]),
    st.sampled_from(["succession", "skip"]),
    st.sampled_from(["sum", "concat"]),
)
def test_no_two_ids_have_the_same_rows(num_ids, ratio, strategy, fuse):
    method = BinaryCodeHash(strategy=strategy, fuse=fuse)
    plan = plan_of(method, [spec_of(num_ids)], ratio)
    rows = torch.stack([rows for _, rows in rows_of(plan, num_ids)], dim=1)
    assert len(torch.unique(rows, dim=0)) == num_ids


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=4),
    st.sampled_from(["succession", "skip"]),
    st.sampled_from(["sum", "concat"]),
    st.integers(1, 16),
)
def test_more_budget_never_gives_fewer_bytes(sizes, strategy, fuse, width):
    specs = [spec_of(n, width, f"t{i}") for i, n in enumerate(sizes)]
    method = BinaryCodeHash(strategy=strategy, fuse=fuse)
    ratios = [0.01, 0.03, 0.06, 0.12, 0.25, 0.5, 0.75, 1.0]
    found = [method.blueprint(specs, {}, Budget(ratio=r)).serve_bytes for r in ratios]
    assert found == sorted(found)
    assert found[-1] == sum(spec.full_bytes for spec in specs)


def test_shared_blocks_read_one_table_as_large_as_the_largest_block():
    plan = plan_of(BinaryCodeHash(share_blocks=True), [spec_of()], 0.05)
    assert [(t.name, t.num_rows) for t in plan.tables] == [("a", 128)]
    assert len(plan.outputs[0].lookups) == 2


def test_ids_whose_shared_blocks_agree_in_another_order_have_one_vector():
    tables = build(BinaryCodeHash(share_blocks=True), [spec_of()], 0.016)
    assert tables.plan.tables[0].num_rows == 64
    one, other = tables.rows("a_id", torch.tensor([3 + 64 * 5, 5 + 64 * 3]))
    assert torch.equal(one, other)


def test_the_rows_side_by_side_are_as_wide_as_the_vector():
    # Blocks of five, five and two bits: 32 * 6 + 32 * 5 + 4 * 5 values, 0.57 % of 4096 * 16.
    plan = plan_of(BinaryCodeHash(fuse="concat"), [spec_of()], 0.006)
    widths = [t.width for t in plan.tables]
    assert widths == [6, 5, 5]


def test_blocks_are_never_more_than_the_vector_is_wide():
    plan = plan_of(BinaryCodeHash(fuse="concat"), [spec_of(width=2)], 0.001)
    assert [t.width for t in plan.tables] == [1, 1]


@pytest.mark.parametrize(("fuse", "ratio"), [("sum", 0.05), ("concat", 0.05)])
def test_initial_vectors_have_the_full_table_s_deviation(fuse, ratio):
    # 2^16 ids: enough rows in every block for 2 %.
    tables = build(BinaryCodeHash(fuse=fuse), [spec_of(2**16)], ratio)
    vectors = tables.rows("a_id", torch.arange(2**16)).detach()
    assert float(vectors.std()) == pytest.approx(Initial.dlrm(2**16).std, rel=0.05)


def test_tables_of_few_ids_stay():
    plan = plan_of(BinaryCodeHash(), [spec_of(), spec_of(100, name="b")], 0.05)
    assert plan.table("b").num_rows == 100
    assert plan.outputs[1].lookups[0].program == ()


def test_the_floor_is_a_row_for_each_bit_s_values():
    plan = BinaryCodeHash().plan([spec_of()], {}, Budget(ratio=0.001))
    assert not plan.is_feasible
    # Twelve blocks of one bit, or six of two: 24 rows.
    assert plan.ratio == pytest.approx(24 / 4096)


def test_multiplexed_blocks_of_all_tables_are_hashed_into_the_rows_they_would_have():
    specs = [spec_of(), spec_of(3000, name="b")]
    apart = plan_of(BinaryCodeHash(fuse="concat"), specs, 0.1)
    together = plan_of(BinaryCodeHash(fuse="concat", scope="multiplexed"), specs, 0.1)
    (shared,) = together.tables
    assert shared.num_rows == sum(t.num_rows for t in apart.tables)
    a, b = (rows_of(together, 3000, output) for output in (0, 1))
    assert all(name == shared.name for name, _ in [*a, *b])
    assert (a[0][1] != b[0][1]).float().mean() > 0.9


def test_sums_cannot_be_multiplexed():
    with pytest.raises(ValueError, match="fuse=sum cannot be multiplexed: embeddings that are"):
        BinaryCodeHash(scope="multiplexed")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strategy": "random"}, "strategy must be succession or skip"),
        ({"fuse": "product"}, "fuse sum or concat"),
        ({"fuse": "concat", "share_blocks": True}, "share_blocks needs rows of one width"),
        ({"scope": "shared"}, "scope must be"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        BinaryCodeHash(**wrong)
