"""Scores from tables that several processes share."""

from pathlib import Path

import torch

from recemb.data.prepared import Prepared
from recemb.data.synthetic_sequences import SyntheticSequences
from recemb.models.sequence import retrieval
from recemb.models.sequence.dare import DARE
from recemb.models.sequence.history_model import HistoryModel
from recemb.models.sequence.twin import TWIN
from recemb.models.sequence.twin_4e import TWIN4E
from recemb.tables.full import full_tables
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.sharded import shard_tables
from recemb.tables.sharding import plan_sharding, read_shardings
from recemb.train.ranks import Ranks
from recemb.train.sharded_run import physical_tables
from tests.processes import on_ranks

KINDS: tuple[type[HistoryModel], ...] = (TWIN, DARE, TWIN4E)
# Of the first one rank has three examples and the other four, of the second one has none.
BATCH_SIZES = (7, 1)
# Sums of a few float32 products in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def compare_scores(folder: Path) -> list[int]:
    """Check that this rank's scores are those of whole tables; return how many there are."""
    # Several blocks for each rank, of a number that differs.
    retrieval._BLOCK = 200
    prepared, ranks = Prepared(folder), Ranks.current()
    batches = [
        next(prepared.batches("train", batch_size=n, rank=ranks.rank, world_size=ranks.world_size))
        for n in BATCH_SIZES
    ]
    for kind in KINDS:
        specs = kind.table_specs(prepared.schema, embedding_dim=8, options={})
        whole, meta = (
            full_tables(
                specs, optimizer=TableOptimizer(kind="sgd"), seed=1, init_std=0.5, device=device
            )
            for device in ("cpu", "meta")
        )
        physical = physical_tables(meta)
        sharding = plan_sharding(
            physical, read_shardings("row_wise", physical), world_size=ranks.world_size
        )
        shared = shard_tables(meta, sharding).eval()
        model = kind.for_tables(prepared.schema, whole, {"top_k": 3}).eval()
        for batch in batches:
            with torch.no_grad():
                expected, found = model.score(batch, whole), model.score(batch, shared)
            torch.testing.assert_close(found, expected, **ROUNDING)
    return [len(batch) for batch in batches]


def test_ranks_with_unequal_shares_score_as_one_process_does(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    SyntheticSequences(num_users=10, length=30, num_items=120, max_history=20).prepare(
        Path(), folder
    )
    assert on_ranks(2, compare_scores, folder) == [[3, 0], [4, 1]]
