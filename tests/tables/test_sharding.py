"""Who holds what."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.tables.automatic_sharding import choose_shardings
from recemb.tables.initial import Initial, draw_blocks, draw_weights
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.physical_table import PhysicalTable
from recemb.tables.sharding import TableSharding, plan_sharding, read_shardings

TABLES = (
    PhysicalTable(name="large", num_rows=1000, width=16),
    PhysicalTable(name="half", num_rows=500, width=16),
    PhysicalTable(name="other", num_rows=400, width=16),
    PhysicalTable(name="tiny", num_rows=3, width=1),
)
KINDS = ("data_parallel", "table_wise", "row_wise", "column_wise")


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=4),
    st.sampled_from(KINDS[1:]),
    st.integers(1, 5),
)
def test_shards_are_the_whole_table_once(sizes, kind, world_size) -> None:
    tables = [PhysicalTable(name=str(i), num_rows=n, width=w) for i, (n, w) in enumerate(sizes)]
    plan = plan_sharding(tables, read_shardings(kind, tables), world_size=world_size)
    for table in tables:
        seen = torch.zeros(table.num_rows, table.width)
        for shard in plan.of(table.name):
            assert 0 <= shard.rank < world_size
            rows = slice(shard.first_row, shard.first_row + shard.num_rows)
            seen[rows, shard.first_column : shard.first_column + shard.width] += 1
        assert torch.equal(seen, torch.ones_like(seen))


def test_every_rank_holds_a_data_parallel_table() -> None:
    plan = plan_sharding(TABLES, read_shardings("data_parallel", TABLES), world_size=3)
    assert [(s.rank, s.num_rows, s.width) for s in plan.of("half")] == [
        (r, 500, 16) for r in range(3)
    ]


def test_row_wise_bytes_fall_as_one_over_the_ranks() -> None:
    total = 4 * sum(t.num_rows * t.width for t in TABLES)
    for world_size in (1, 2, 4):
        plan = plan_sharding(TABLES, read_shardings("row_wise", TABLES), world_size=world_size)
        # The last block of a table may be shorter, by less than a row for each rank.
        rest = 4 * sum(t.width for t in TABLES)
        assert max(plan.rank_bytes(TABLES, None)) <= total / world_size + rest


def test_table_wise_tables_go_to_the_emptiest_rank() -> None:
    plan = plan_sharding(TABLES, read_shardings("table_wise", TABLES), world_size=2)
    assert {name: plan.of(name)[0].rank for name in ("large", "half", "other")} == {
        "large": 0,
        "half": 1,
        "other": 1,
    }


def test_bytes_of_a_rank_count_the_optimizer_state() -> None:
    plan = plan_sharding(TABLES[:1], read_shardings("row_wise", TABLES[:1]), world_size=2)
    sizes = {
        kind: plan.rank_bytes(TABLES[:1], TableOptimizer(kind=kind))[0]
        for kind in ("sgd", "rowwise_adagrad", "adagrad", "adam")
    }
    rows, values = 500 * 4, 500 * 16 * 4
    assert sizes == {
        "sgd": values,
        "rowwise_adagrad": values + rows,
        "adagrad": 2 * values,
        "adam": 3 * values,
    }


def test_a_plan_names_kinds_and_ranks_table_by_table() -> None:
    text = {
        "default": "row_wise",
        "tables": {"half": {"kind": "column_wise", "ranks": [1, 0]}, "tiny": "data_parallel"},
    }
    found = read_shardings(text, TABLES)
    assert found["half"] == TableSharding(kind="column_wise", ranks=(1, 0))
    assert [found[n].kind for n in ("large", "other", "tiny")] == [
        "row_wise",
        "row_wise",
        "data_parallel",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rowwise", "kind must be one of data_parallel, table_wise, row_wise, column_wise, got"),
        ({"tables": {"large": "row_wise"}}, r"says nothing of tables \['half', 'other', 'tiny'\]"),
        ({"default": "row_wise", "tables": {"huge": "row_wise"}}, r"no physical tables \['huge'\]"),
        ({"row_wise": ["large"]}, r"a plan has `default` and `tables`, got \['row_wise'\]"),
        ({"default": {"ranks": [0]}}, "an entry is a kind|entry is a kind, or kind and ranks"),
        ({"default": {"kind": "row_wise", "ranks": [0]}}, "row_wise has all ranks"),
        ({"default": {"kind": "table_wise", "ranks": [0, 1]}}, "table_wise needs one rank"),
    ],
)
def test_a_wrong_plan_is_refused(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_shardings(text, TABLES)


def test_a_rank_that_does_not_exist_is_refused() -> None:
    its = {"large": TableSharding(kind="table_wise", ranks=(2,))}
    with pytest.raises(
        ValueError, match=r"'large' is to lie on ranks \[2\], but ranks are in \[0, 2\)"
    ):
        plan_sharding(TABLES[:1], its, world_size=2)


def test_columns_that_cannot_be_cut_are_refused() -> None:
    its = {"large": TableSharding(kind="column_wise", ranks=(0, 1, 0))}
    with pytest.raises(ValueError, match="16 wide, which 3 parts do not divide"):
        plan_sharding(TABLES[:1], its, world_size=2)


def test_the_planner_cuts_what_is_larger_than_an_equal_share_by_rows() -> None:
    found = choose_shardings(TABLES, TableOptimizer(), world_size=4, device=torch.device("cpu"))
    assert found["large"] == TableSharding(kind="row_wise")
    plan = plan_sharding(TABLES, found, world_size=4)
    whole = 4 * sum(t.num_rows * t.width for t in TABLES)
    assert max(plan.rank_bytes(TABLES, None)) < whole / 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_planner_s_plan_fits_into_the_ranks_memory_or_is_refused(device) -> None:
    """10^9 rows of 64: 256 GB, and 4 GB of state; a GPU is taken to have 32 GB."""
    table = PhysicalTable(name="huge", num_rows=1_000_000_000, width=64)
    choose = partial(choose_shardings, [table], TableOptimizer(), device=torch.device(device))
    if device == "cuda":
        with pytest.raises(ValueError, match=r"finds no plan for 2 ranks: .* Use more ranks"):
            choose(world_size=2)
    found = choose(world_size=16)
    held = plan_sharding([table], found, world_size=16).rank_bytes([table], TableOptimizer())
    assert max(held) < 32 * 2**30


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5000), st.integers(1, 9), st.sampled_from(["normal", "uniform"]))
def test_blocks_are_drawn_as_if_they_were_one(num_rows, width, distribution) -> None:
    tables = (
        PhysicalTable(name="first", num_rows=num_rows, width=width),
        PhysicalTable(name="second", num_rows=3, width=2),
    )
    plan = LookupPlan(tables=tables, outputs=())
    initial = {t.name: Initial(distribution=distribution, spread=0.1) for t in tables}
    whole = {t.name: torch.empty(t.num_rows, t.width) for t in tables}
    draw_weights(plan, whole.__getitem__, {}, initial, seed=7)
    found = {t.name: torch.empty(t.num_rows, t.width) for t in tables}

    def write(table: str, first: int, block: torch.Tensor) -> None:
        found[table][first : first + block.shape[0]] = block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recemb.tables.initial._BLOCK_VALUES", 256)
        draw_blocks(plan, write, {}, initial, seed=7)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
