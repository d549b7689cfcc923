"""CCE: the sum of two rows for each chunk, clusterings, bytes of codes, interruptions."""

import pytest
import torch

from recemb.ids.hashing import hash_rows
from recemb.methods.cce import CCE
from recemb.methods.cce_tables import Clustering
from recemb.methods.code_sums import SumForm
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

SPEC = TableSpec(name="t", num_embeddings=3000, embedding_dim=8, feature_names=("f0",))
IDS = torch.arange(3000)
CPU = torch.device("cpu")


def build(*, specs=(SPEC,), budget=None, num_entries=150, **changes):
    named = {"optimizer": TableOptimizer(), "seed": 1, "device": CPU}
    return CCE(num_entries=num_entries, **changes).build(list(specs), {}, budget, **named)


def parts(tables, name="t"):
    """Return the codes (n, c), the two kinds of rows (c, r, Z) and the hashes (n, c) of a table."""
    form, state = tables.forms[name], tables.state_dict()
    shape = (form.num_chunks, form.num_entries, form.chunk_width)
    centroids = state[f"embedding_bags.{name}.centroids.weight"].view(shape)
    hashed = state[f"embedding_bags.{name}.hashed.weight"].view(shape)
    source = tables.freeze().sources[name]
    seeds = source.get_buffer("hash_seeds").tolist()
    ids = IDS[: form.num_rows]
    hashes = [torch.from_numpy(hash_rows(ids.numpy(), s, form.num_entries)) for s in seeds]
    return state[f"buffers.{name}.codes"].long(), centroids, hashed, torch.stack(hashes, dim=1)


def composed(codes, centroids, hashed, hashes):
    chunks = [
        centroids[j, codes[:, j]] + hashed[j, hashes[:, j]] for j in range(centroids.shape[0])
    ]
    return torch.cat(chunks, dim=1)


def test_a_row_is_in_each_chunk_the_row_of_its_code_and_a_hashed_one():
    tables = build()
    assert torch.equal(tables.rows("f0", IDS), composed(*parts(tables)))


def test_before_any_clustering_codes_are_hashes_that_differ_from_the_others():
    codes, _, _, hashes = parts(build(num_entries=100))
    num_entries = 100
    for j in range(4):
        assert codes[:, j].unique().numel() > 0.99 * num_entries
        # Two independent hashes agree on about one of r ids.
        agree = float((codes[:, j] == hashes[:, j]).float().mean())
        assert agree < 5 / num_entries
    assert len({tuple(column.tolist()) for column in [*codes.T, *hashes.T]}) == 8


def test_a_clustering_brings_vectors_to_centroids_and_the_mean_of_what_is_left():
    tables = build(num_chunks=2)
    before = tables.rows("f0", IDS).detach()
    tables.cluster(Clustering())
    codes, centroids, hashed, hashes = parts(tables)
    for j in range(2):
        chunk = before[:, 4 * j : 4 * j + 4]
        nearest = torch.cdist(chunk, centroids[j]).argmin(dim=1)
        assert float((codes[:, j] == nearest).float().mean()) > 0.999
        left = chunk - centroids[j, codes[:, j]]
        for bucket in (0, 7, int(hashes[-1, j])):
            mean = left[hashes[:, j] == bucket].mean(dim=0)
            torch.testing.assert_close(hashed[j, bucket], mean, rtol=1e-4, atol=1e-6)
    assert torch.equal(tables.rows("f0", IDS), composed(codes, centroids, hashed, hashes))


def test_ids_with_one_vector_have_it_after_a_clustering():
    # As many different chunks as centroids: nothing is lost.
    tables = build()
    form = tables.forms["t"]
    with torch.no_grad():
        for name in ("t.centroids", "t.hashed"):
            weight = tables.planned.table(name)
            weight.copy_(torch.randint(0, 3, weight.shape, generator=torch.Generator()))
    before = tables.rows("f0", IDS).detach()
    assert before[:, :2].unique(dim=0).shape[0] <= form.num_entries
    tables.cluster(Clustering(samples_per_centroid=3000))
    torch.testing.assert_close(tables.rows("f0", IDS), before, rtol=0, atol=1e-5)


def test_a_clustering_draws_new_hashes_and_begins_the_optimizer_anew():
    tables = build()
    hashes = parts(tables)[3]
    vectors = tables.planned.table("t.hashed")
    tables.cluster(Clustering())
    assert tables.num_clusterings == 1
    assert float((parts(tables)[3] == hashes).float().mean()) < 0.05
    assert tables.planned.table("t.hashed") is not vectors
    state = tables.state_dict()
    moments = [state[key] for key in state if key.startswith("optimizer.")]
    assert moments
    assert not any(moment.any() for moment in moments)


def test_a_bucket_without_ids_has_the_row_zero():
    small = TableSpec(name="t", num_embeddings=60, embedding_dim=8, feature_names=("f0",))
    tables = build(specs=[small], num_entries=24)
    tables.cluster(Clustering())
    _, _, hashed, hashes = parts(tables)
    is_empty = torch.ones(hashed.shape[:2], dtype=torch.bool)
    for j in range(4):
        is_empty[j, hashes[:, j]] = False
    assert is_empty.any()
    assert not hashed[is_empty].any()
    assert bool(torch.isfinite(tables.rows("f0", torch.arange(60))).all())


def test_a_state_of_another_clustering_is_taken_up():
    one, two = build(), build()
    one.cluster(Clustering())
    two.load_state_dict(one.state_dict())
    assert two.num_clusterings == 1
    assert torch.equal(two.rows("f0", IDS), one.rows("f0", IDS))
    frozen = two.freeze()
    assert torch.equal(frozen.rows("f0", IDS), one.rows("f0", IDS))


def test_codes_count_at_their_least_bits():
    # 4 codes of 7 bits are 28 bits, so 4 bytes; two tables of 100 x 8 values; 4 seeds.
    form = SumForm(num_rows=3000, width=8, num_chunks=4, num_entries=100)
    assert form.parts() == {"codes": 3000 * 4, "weights": 2 * 100 * 8 * 4, "hash_constants": 32}


def test_a_budget_is_filled_to_one_more_row():
    budget = Budget(ratio=0.25)
    plan = CCE().plan([SPEC], {}, budget)
    assert plan.is_feasible
    rows = plan.parameters["num_entries"]
    larger = SumForm(num_rows=3000, width=8, num_chunks=4, num_entries=rows + 1)
    assert larger.num_bytes > budget.allowed_bytes([SPEC]) >= plan.storage.serve_bytes


def test_small_tables_stay_beside_large_ones_of_as_many_rows():
    small = TableSpec(name="s", num_embeddings=40, embedding_dim=8, feature_names=("f1",))
    tables = build(specs=[SPEC, small])
    assert list(tables.forms) == ["t"]
    assert tables.storage().serve["weights"] == 2 * 150 * 8 * 4 + 40 * 8 * 4
    assert torch.equal(tables.freeze().rows("f1", torch.arange(40)), tables.planned.table("s"))


def test_clusterings_are_spread_over_the_first_part_of_training():
    assert CCE().due(1000) == {107, 214, 321, 429, 536, 643, 750}
    assert CCE(num_clusterings=1, until=0.5).due(10) == {5}
    assert CCE(num_clusterings=0).due(10) == set()
    # The last update is none to cluster after.
    assert CCE(num_clusterings=2, until=1.0).due(10) == {5}


@pytest.mark.parametrize(
    "wrong", [{"num_chunks": 0}, {"num_clusterings": -1}, {"until": 0.0}, {"num_entries": 1}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="CCE: "):
        CCE(**wrong)


def test_training_clusters_keeps_the_budget_and_serves_what_it_scores(staged):
    budget = Budget(ratio=0.6)
    context = staged(CCE.stages, budget=budget, epochs=2)
    tables = CCE(num_chunks=2, num_clusterings=2).run(context)
    assert tables.forms
    assert tables.num_clusterings > 0
    assert tables.storage().serve_bytes <= budget.allowed_bytes(context.specs)
    assert context.evaluate(tables.freeze()) == context.evaluate(tables)


def test_at_half_of_the_bytes_it_is_above_hashing(staged, hashed_auc):
    budget = Budget(ratio=0.5)
    context = staged(CCE.stages, budget=budget, epochs=4)
    auc = context.evaluate(CCE(num_chunks=2, num_clusterings=2).run(context))["val/auc"]
    assert auc > hashed_auc(budget, epochs=4)


# 24 updates, with clusterings after 9 and 18 of them; calls are the fit, updates and scores.
@pytest.mark.parametrize("stop_at", [12, 23])
def test_a_run_killed_after_a_clustering_ends_as_if_undisturbed(resumes, stop_at):
    method = CCE(num_chunks=2, num_clusterings=2)
    resumes(method, stop_at, budget=Budget(ratio=0.6), epochs=2)
