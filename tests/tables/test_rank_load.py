"""Rows asked of each rank: as batches ask for them, and evenly where rows are hashed."""

from collections.abc import Mapping

import pytest
import torch

from recemb.methods.full import Full
from recemb.methods.unified import Unified
from recemb.tables.method import Budget, Method
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.program import run_program
from recemb.tables.rank_load import rank_rows
from recemb.tables.sharding import ShardingPlan, plan_sharding, read_shardings
from recemb.tables.spec import ANY_ID, TableSpec

WORLD_SIZE, BATCH_SIZE, NUM_IDS = 4, 4096, (20_000, 5_000, 60)
SPECS = [
    TableSpec(name=f"t{f}", num_embeddings=n, embedding_dim=8, feature_names=(f"f{f}",))
    for f, n in enumerate(NUM_IDS)
]
# Zipf: the i-th of n ids is in a share 1 / (i H_n) of a million examples.
NUM_EXAMPLES = 1_000_000
SHARES = {
    f"f{f}": (1 / torch.arange(1, n + 1).double()) / (1 / torch.arange(1, n + 1).double()).sum()
    for f, n in enumerate(NUM_IDS)
}
COUNTS = {name: NUM_EXAMPLES * share for name, share in SHARES.items()}


def made(method: Method, kind: str = "row_wise") -> tuple[PlannedTables, ShardingPlan]:
    """Return tables on the meta device, and their shards."""
    tables = method.build(
        SPECS,
        COUNTS,
        Budget(ratio=0.2) if isinstance(method, Unified) else None,
        optimizer=TableOptimizer(),
        seed=0,
        device=torch.device("meta"),
    )
    assert isinstance(tables, PlannedTables)
    physical = tables.plan.tables
    return tables, plan_sharding(physical, read_shardings(kind, physical), world_size=WORLD_SIZE)


def load(method: Method, kind: str = "row_wise") -> list[float]:
    """Return the rows asked of each rank."""
    tables, sharding = made(method, kind)
    found = rank_rows([tables], sharding, COUNTS, num_examples=NUM_EXAMPLES, batch_size=BATCH_SIZE)
    assert found is not None
    return found


def drawn_load(tables: PlannedTables, sharding: ShardingPlan, seed: int) -> torch.Tensor:
    """Return the rows that the parts of one batch, drawn by the shares, ask of each rank."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(WORLD_SIZE)
    buffers: Mapping[str, torch.Tensor] = {}
    for _ in range(WORLD_SIZE):
        asked = set()
        for output in tables.plan.outputs:
            drawn = torch.multinomial(
                SHARES[output.feature], BATCH_SIZE // WORLD_SIZE, True, generator=generator
            )
            for lookup in output.lookups:
                rows = run_program(lookup.program, drawn, buffers)
                asked |= {(lookup.table, row) for row in rows.tolist()}
        for table, row in asked:
            (owner,) = [
                s.rank for s in sharding.of(table) if s.first_row <= row < s.first_row + s.num_rows
            ]
            found[owner] += 1
    return found


@pytest.mark.parametrize("method", [Full(), Unified()], ids=["full", "unified"])
def test_the_expected_load_is_the_mean_of_drawn_batches(method: Method) -> None:
    tables, sharding = made(method)
    drawn = torch.stack([drawn_load(tables, sharding, seed) for seed in range(3)])
    # Each of a rank's rows is there or not, so the variance of their number is at most its mean.
    deviation = (torch.tensor(load(method)) / len(drawn)).sqrt()
    assert ((drawn.mean(0) - torch.tensor(load(method))).abs() < 4 * deviation).all()


def test_hashed_rows_are_asked_of_all_ranks_alike() -> None:
    unified, plain = load(Unified(exact_below=0)), load(Full())
    assert max(unified) < 1.05 * sum(unified) / WORLD_SIZE
    # A vocabulary in order of frequency has its frequent ids in the first block.
    assert max(plain) > 1.5 * sum(plain) / WORLD_SIZE


def test_rows_that_tiny_tables_keep_lie_on_the_first_rank() -> None:
    unified = load(Unified())
    # Every part of a batch asks for each of the two rows of 60 ids at most once.
    assert max(unified) == unified[0]
    assert unified[0] - min(unified) < 1.05 * WORLD_SIZE * 2 * NUM_IDS[-1]


def test_unified_bytes_of_ranks_differ_by_less_than_a_row_of_each_rank() -> None:
    tables, sharding = made(Unified())
    sizes = sharding.rank_bytes(tables.plan.tables, None)
    row_bytes = sum(4 * table.width for table in tables.plan.tables)
    # The last block is shorter by what the number of ranks does not divide.
    assert max(sizes) - min(sizes) < WORLD_SIZE * row_bytes


def test_rows_of_replicas_are_asked_of_nobody() -> None:
    assert load(Full(), "data_parallel") == [0.0] * WORLD_SIZE


def test_ranks_that_hold_columns_send_parts_of_rows() -> None:
    whole, columns = load(Full(), "table_wise"), load(Full(), "column_wise")
    assert sum(columns) == pytest.approx(sum(whole))
    assert columns == pytest.approx([sum(columns) / WORLD_SIZE] * WORLD_SIZE)


def test_ids_that_are_not_counted_have_no_expectation() -> None:
    spec = TableSpec(name="a", num_embeddings=ANY_ID, embedding_dim=4, feature_names=("f0",))
    tables = Unified().build(
        [spec],
        {},
        Budget(num_bytes=1000),
        optimizer=TableOptimizer(),
        seed=0,
        device=torch.device("meta"),
    )
    physical = tables.plan.tables
    sharding = plan_sharding(physical, read_shardings("row_wise", physical), world_size=2)
    assert rank_rows([tables], sharding, {}, num_examples=1, batch_size=1) is None
