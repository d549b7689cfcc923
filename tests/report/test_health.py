"""The health of trained tables."""

import math

import pytest
import torch

from recemb.report.health import counts_of, one_of_each_table, row_use, vector_health
from recemb.tables.full import full_tables
from recemb.tables.planned import PlannedTables
from recemb.tables.spec import TableSpec

ITEMS = TableSpec(
    name="item",
    num_embeddings=8,
    embedding_dim=4,
    feature_names=("item", "history"),
    pooling="none",
)
USERS = TableSpec(name="user", num_embeddings=6, embedding_dim=3, feature_names=("user",))
COUNTS = torch.tensor([0, 1, 5, 10, 99, 100, 0, 2000])


def tables() -> PlannedTables:
    made = full_tables([ITEMS, USERS], seed=1)
    weight = made.table("item").detach()
    weight.copy_(torch.eye(4).repeat(2, 1))
    weight[6:] = torch.tensor([[0.0, 0, 0, 0], [3, 0, 0, 0]])
    return made


def health(**options):
    return vector_health(tables(), "history", COUNTS, **options)


def test_ids_of_training_and_dead_vectors_are_counted() -> None:
    found = health()
    assert (found.num_ids, found.num_seen, found.num_sampled) == (8, 6, 8)
    assert found.num_zero == 1
    assert found.norms == (0, 1, 1, 1, 3)


def test_ids_with_the_vector_of_another_are_merged() -> None:
    # Rows 0 and 4, 1 and 5 are equal; 2, 3, 6 and 7 are not like any other.
    assert health().share_merged == 4 / 8


def test_vectors_of_one_direction_have_rank_one_and_orthogonal_ones_full_rank() -> None:
    made = tables()
    weight = made.table("item").detach()
    weight.copy_(torch.eye(4).repeat(2, 1))
    assert vector_health(made, "item", COUNTS).rank == pytest.approx(4, rel=1e-4)
    weight.copy_(torch.arange(1.0, 9).unsqueeze(1) * torch.tensor([1.0, 2, 0, 0]))
    assert vector_health(made, "item", COUNTS).rank == pytest.approx(1, rel=1e-4)
    weight.zero_()
    assert vector_health(made, "item", COUNTS).rank == 0


def test_buckets_are_powers_of_ten_of_occurrences() -> None:
    buckets = {b.first: b for b in health().buckets}
    assert {first: b.num_ids for first, b in buckets.items()} == {
        0: 2,
        1: 2,
        10: 2,
        100: 1,
        1000: 1,
    }
    assert buckets[1].share_of_lookups == 6 / int(COUNTS.sum())
    assert buckets[1000].mean_norm == 3
    assert math.isclose(sum(b.share_of_lookups for b in buckets.values()), 1)


def test_of_many_ids_some_are_drawn() -> None:
    found = health(max_ids=3)
    assert (found.num_ids, found.num_sampled) == (8, 3)
    assert sum(b.num_ids for b in found.buckets) == 8


def test_rows_that_no_id_of_training_reads_are_not_counted() -> None:
    made = tables()
    counts = {"item": COUNTS, "history": torch.eye(8)[6].long(), "user": torch.ones(6).long()}
    found = {
        u.table: (u.num_rows, u.num_read) for u in row_use(made.plan, made.plan_buffers, counts)
    }
    assert found == {"item": (8, 7), "user": (6, 6)}


def test_a_table_that_features_share_has_the_occurrences_of_both() -> None:
    made = tables()
    by_feature = {"item": COUNTS, "history": 2 * COUNTS, "user": torch.ones(6).long()}
    found = counts_of(made, by_feature)
    assert torch.equal(found["item"], 3 * COUNTS)
    assert torch.equal(found["history"], 3 * COUNTS)
    assert one_of_each_table(list(made.outputs), made) == ["item", "user"]


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no key 'nothing'"):
        vector_health(tables(), "nothing", COUNTS)
