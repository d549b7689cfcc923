"""DPQ: the choice of a size, training on planted clicks, interruptions."""

import pytest
import torch

from recemb.methods.dpq import DPQ
from recemb.tables.computed import ComputedTables
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec

SPECS = [
    TableSpec(name="a", num_embeddings=100_000, embedding_dim=16, feature_names=("f0",)),
    TableSpec(name="w", num_embeddings=100_000, embedding_dim=1, feature_names=("f0",)),
]


def chosen(budget, **changes):
    plan = DPQ(**changes).plan(SPECS, {}, budget)
    assert plan.is_feasible
    return plan.parameters["num_parts"]["a"], plan.parameters["num_centroids"]


@pytest.mark.parametrize(
    ("ratio", "parts", "centroids"),
    [
        # Bytes of an id: of 64 for the vector, and of 4 for the first-order weight, which takes 1.
        (0.5, 16, 256),  # 16 + 1
        (0.25, 16, 128),  # 14 + 1: with 256 centroids the codebooks are too much.
        (0.2, 16, 64),  # 12 + 1
        (0.17, 16, 32),  # 10 + 1
        (0.1, 8, 32),  # 5 + 1
        (0.05, 2, 256),  # 2 + 1: 16 bits are two bytes, as 10 bits are.
        (0.0296, 2, 16),  # 1 + 1, and codebooks of 17 x 16 x 4 bytes, but not of more
    ],
)
def test_a_budget_chooses_the_most_bits_for_a_vector_and_then_the_most_centroids(
    ratio, parts, centroids
):
    assert chosen(Budget(ratio=ratio)) == (parts, centroids)


def test_without_a_budget_there_are_as_many_parts_as_it_is_told():
    assert chosen(None) == (8, 32)
    assert chosen(None, num_parts=7, num_centroids=10) == (4, 10)


def test_small_tables_have_fewer_centroids_and_more_parts():
    # 6,400 bytes: codebooks of 16 centroids are 1,024, 8 parts of 4 bits for 1,000 ids 4,000.
    small = TableSpec(name="s", num_embeddings=1000, embedding_dim=16, feature_names=("f0",))
    level = DPQ().level([small], Budget(ratio=0.1))
    assert level == (8, 16)


def test_training_counts_the_queries():
    plan = DPQ().plan(SPECS, {}, None)
    codebooks = 4 * 32 * 17
    assert plan.storage.serve == {"codes": 100_000 * 6, "codebooks": codebooks}
    assert plan.storage.train["weights"] == 100_000 * 17 * 4
    assert plan.storage.train["transforms"] == codebooks


def test_tables_that_codebooks_would_not_shrink_stay_as_they_are():
    small = TableSpec(name="s", num_embeddings=30, embedding_dim=16, feature_names=("f1",))
    plan = DPQ().plan([*SPECS, small], {}, None)
    assert "s" not in plan.parameters["num_parts"]
    assert plan.storage.serve["weights"] == 30 * 16 * 4


@pytest.mark.parametrize(
    "wrong", [{"num_parts": 0}, {"num_centroids": 1}, {"variant": "pq"}], ids=str
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"DPQ: |quantization: "):
        DPQ(**wrong)


def test_a_budget_below_the_least_is_refused():
    with pytest.raises(ValueError, match="DPQ: the budget allows 10 bytes, but the least is"):
        DPQ().build(
            SPECS, {}, Budget(num_bytes=10), optimizer=None, seed=1, device=torch.device("cpu")
        )


@pytest.mark.parametrize("variant", ["vq", "sx"])
def test_what_is_scored_in_training_is_what_is_served(staged, variant):
    budget = Budget(ratio=0.5)
    context = staged(DPQ.stages, budget=budget, epochs=2)
    tables = DPQ(variant=variant).run(context)
    frozen = tables.freeze()
    assert isinstance(frozen, ComputedTables)
    assert context.evaluate(frozen) == context.evaluate(tables)
    stored = sum(t.nbytes for t in frozen.state_dict().values())
    assert stored == tables.storage().serve_bytes <= budget.allowed_bytes(context.specs)


def test_at_half_of_the_bytes_it_is_above_hashing(staged, hashed_auc):
    budget = Budget(ratio=0.5)
    context = staged(DPQ.stages, budget=budget, epochs=4)
    auc = context.evaluate(DPQ().run(context))["val/auc"]
    assert auc > hashed_auc(budget, epochs=4) + 0.01


def test_centroids_follow_the_queries(staged):
    context = staged(DPQ.stages, budget=Budget(ratio=0.5), epochs=3)

    def distance(tables):
        queries = tables.table("f0").detach()
        vectors = tables.rows("f0@f0", torch.arange(60)).detach()
        return float((vectors - queries).square().mean() / queries.square().mean())

    assert distance(DPQ().run(context)) < 0.5
    alone = staged(DPQ.stages, budget=Budget(ratio=0.5), epochs=3, folder="alone")
    assert distance(DPQ(codebook_weight=0.0).run(alone)) > 0.5


# Calls: the fit, 12 updates and a score of each epoch.
@pytest.mark.parametrize("stop_at", [20])
def test_a_killed_run_ends_as_if_undisturbed(resumes, stop_at):
    resumes(DPQ(variant="sx"), stop_at, budget=Budget(ratio=0.5), epochs=2)
