"""Feature multiplexing (`scope: multiplexed`): one set of rows for all features, by method."""

from functools import partial

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.methods.binary_code_hash import BinaryCodeHash
from recemb.methods.bloom import Bloom
from recemb.methods.ce import CE
from recemb.methods.compo_emb import CompoEmb
from recemb.methods.double_hash import DoubleHash
from recemb.methods.frequency_double_hash import FrequencyDoubleHash
from recemb.methods.hash import Hashing
from recemb.methods.hash_embeddings import HashEmbeddings
from recemb.tables.initial import Initial
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.program import run_program
from recemb.tables.spec import TableSpec

SPECS = [
    # First the tiny one, whose row must not be drawn like those that are summed, nor they like it.
    TableSpec(name="tiny", num_embeddings=60, embedding_dim=16, feature_names=("i",)),
    TableSpec(name="a", num_embeddings=4000, embedding_dim=16, feature_names=("f",)),
    TableSpec(
        name="b", num_embeddings=5000, embedding_dim=16, feature_names=("g", "h"), pooling="mean"
    ),
]
SEQUENCES = [
    TableSpec(
        name=name, num_embeddings=900, embedding_dim=16, feature_names=(name,), pooling="none"
    )
    for name in ("s", "t")
]
METHODS = [
    Hashing,
    DoubleHash,
    Bloom,
    CE,
    HashEmbeddings,
    FrequencyDoubleHash,
    CompoEmb,
    partial(BinaryCodeHash, fuse="concat"),
]
# Sums of a few float32 products in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def blueprint(kind, specs=SPECS, ratio=0.1):
    return kind(scope="multiplexed").blueprint(specs, {}, Budget(ratio=ratio))


def build(kind, specs=SPECS, ratio=0.1):
    return kind(scope="multiplexed").build(
        specs,
        {},
        Budget(ratio=ratio),
        optimizer=TableOptimizer(),
        seed=1,
        device=torch.device("cpu"),
    )


def output_of(made, key):
    return next(o for o in made.plan.outputs if o.key == key)


def lookups_of(made, key):
    """Return the lookups of shared tables."""
    return [v for v in output_of(made, key).lookups if v.table.startswith("shared_")]


def rows_of(made, key, num_ids):
    rows = [
        run_program(v.program, torch.arange(num_ids), made.buffers) for v in lookups_of(made, key)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("kind", METHODS)
def test_large_features_share_a_table(kind):
    made = blueprint(kind)
    tables = [{v.table for v in lookups_of(made, key)} for key in ("f", "g", "h")]
    assert len(tables[0]) == 1
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.parametrize("kind", METHODS)
def test_features_are_hashed_differently(kind):
    made = blueprint(kind)
    f, g = rows_of(made, "f", 4000), rows_of(made, "g", 4000)[:, :4000]
    both = (f >= 0) & (g >= 0)
    assert (f[both] != g[both]).float().mean() > 0.9


@pytest.mark.parametrize("kind", METHODS)
def test_features_of_one_table_read_the_same_rows(kind):
    made = blueprint(kind)
    assert torch.equal(rows_of(made, "g", 5000), rows_of(made, "h", 5000))


# Blocks of bits have sizes of their own; all others take what the budget gives.
@pytest.mark.parametrize("kind", METHODS[:-1])
def test_the_budget_is_used_to_a_hundredth(kind):
    made, budget = blueprint(kind), Budget(ratio=0.1)
    allowed = budget.allowed_bytes(SPECS)
    assert 0.99 * allowed < made.serve_bytes <= allowed


@pytest.mark.parametrize("scope", ["per_feature", "multiplexed"])
@pytest.mark.parametrize("kind", METHODS)
def test_initial_vectors_have_the_full_table_s_deviation(kind, scope):
    # Some factors are drawn a dozen times only (remainders, importances of a tiny table), so that
    # one draw of the tables is off by a tenth; the mean of forty variances is known to 2 %.
    variances = {"i": [], "f": [], "g": []}
    made = kind(scope=scope).blueprint(SPECS, {}, Budget(ratio=0.1))
    for seed in range(40):
        tables = made.tables(SPECS, optimizer=None, seed=seed, device=torch.device("cpu"))
        for key, found in variances.items():
            vectors = tables.rows(key, torch.arange(0, tables.outputs[key][0].num_embeddings, 7))
            found.append(float(vectors.detach().square().mean()))
    for key, found in variances.items():
        shares = any(v.table.startswith("shared_") for v in output_of(tables, key).lookups)
        # Rows that features share are drawn for the largest of them.
        target = Initial.dlrm(5000 if shares else tables.outputs[key][0].num_embeddings).std
        assert (sum(found) / len(found)) ** 0.5 == pytest.approx(target, rel=0.05)


@pytest.mark.parametrize("kind", METHODS)
def test_forward_pools_the_rows(kind):
    tables = build(kind)
    generator = torch.Generator().manual_seed(0)
    keys = {"i": 60, "f": 4000, "g": 5000, "h": 5000}
    lengths = torch.randint(0, 4, (4, 6), generator=generator)
    values = torch.cat(
        [
            torch.randint(0, n, (int(num),), generator=generator)
            for n, num in zip(keys.values(), lengths.sum(1), strict=True)
        ]
    )
    features = KeyedJaggedTensor(keys=list(keys), values=values, lengths=lengths.view(-1))
    found = tables(features).to_dict()
    for key in keys:
        bags = features[key]
        vectors = tables.rows(key, bags.values())
        bag_of = torch.arange(6).repeat_interleave(bags.lengths())
        if key in ("g", "h"):
            vectors = vectors / bags.lengths()[bag_of].unsqueeze(1)
        expected = torch.zeros(6, 16).index_add(0, bag_of, vectors)
        torch.testing.assert_close(found[key], expected, **ROUNDING)


@pytest.mark.parametrize("kind", METHODS)
def test_sequences_share_rows_among_themselves(kind):
    made = blueprint(kind, [*SPECS, *SEQUENCES], ratio=0.2)
    tables = {key: {v.table for v in lookups_of(made, key)} for key in ("f", "g", "s", "t")}
    assert len(tables["s"]) == 1
    assert tables["s"] == tables["t"]
    assert not tables["s"] & (tables["f"] | tables["g"])


def test_the_remainder_of_an_id_cannot_be_multiplexed():
    with pytest.raises(ValueError, match="hashing=modulo cannot be multiplexed"):
        Hashing(hashing="modulo", scope="multiplexed")


@pytest.mark.parametrize("kind", METHODS)
def test_an_unknown_scope_is_refused(kind):
    with pytest.raises(ValueError, match="scope must be per_feature or multiplexed, got 'shared'"):
        kind(scope="shared")
