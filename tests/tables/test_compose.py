"""Composition: padding, and ids that only some of an output's lookups know."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.program import Bits, Within
from recemb.tables.spec import TableSpec
from recemb.tables.virtual import VirtualFeatures

# Sums of a few float32 products in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
FEATURES = ("f", "g")
NUM_IDS = 20


def plan_of(tables, lookups, *, pooling="sum", width=4, **changes):
    """Return a plan in which features f and g are looked up alike."""
    return LookupPlan(
        tables=tables,
        outputs=tuple(
            Output(
                key=f,
                feature=f,
                owner="t",
                num_ids=NUM_IDS,
                embedding_dim=width,
                pooling=pooling,
                lookups=lookups,
                **changes,
            )
            for f in FEATURES
        ),
    )


def build(plan, **changes):
    specs = [
        TableSpec(
            name=f"logical_{o.key}",
            num_embeddings=NUM_IDS,
            embedding_dim=o.embedding_dim,
            feature_names=(o.feature,),
            pooling=o.pooling,
        )
        for o in plan.outputs
    ]
    return PlannedTables(specs, plan, **{"optimizer": TableOptimizer(), **changes})


def padded(**changes):
    tables = (PhysicalTable(name="t", num_rows=NUM_IDS, width=4),)
    return plan_of(tables, (VirtualLookup(table="t"),), width=6, padding=2, **changes)


def split(**changes):
    """Ids below 8 have rows of their own, the others the sum of two rows."""
    tables = (
        PhysicalTable(name="own", num_rows=8, width=4),
        PhysicalTable(name="low", num_rows=4, width=4),
        PhysicalTable(name="high", num_rows=12, width=4),
    )
    lookups = (
        VirtualLookup(table="own", program=(Within(end=8),)),
        VirtualLookup(table="low", program=(Bits(places=(0, 1)),)),
        VirtualLookup(table="high", program=(Within(first=8),)),
    )
    return plan_of(tables, lookups, combine="sum", **changes)


def draw(max_length, *, weighted=False):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, max_length + 1, (12,), generator=generator)
    if max_length == 1:
        lengths = torch.ones(12, dtype=torch.int64)
    values = torch.randint(0, NUM_IDS, (int(lengths.sum()),), generator=generator)
    weights = torch.randn(values.numel(), generator=generator) if weighted else None
    return KeyedJaggedTensor(keys=list(FEATURES), values=values, lengths=lengths, weights=weights)


@pytest.mark.parametrize("inputs", [(1, False), (4, False), (4, True)], ids=str)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("plan", [padded, split])
def test_output_is_the_pooled_rows(plan, pooling, inputs):
    tables = build(plan(pooling=pooling))
    features = draw(inputs[0], weighted=inputs[1])
    found = tables(features).to_dict()
    for key in FEATURES:
        bags = features[key]
        vectors = tables.rows(key, bags.values())
        if inputs[1]:
            vectors = vectors * bags.weights().unsqueeze(1)
        bag_of = torch.arange(6).repeat_interleave(bags.lengths())
        if pooling == "mean":
            vectors = vectors / bags.lengths()[bag_of].unsqueeze(1)
        expected = torch.zeros(6, vectors.shape[1]).index_add(0, bag_of, vectors)
        torch.testing.assert_close(found[key], expected, **ROUNDING)


def test_the_rows_of_a_split_output_are_those_of_the_lookups_that_know_the_id():
    tables = build(split(), optimizer=None)
    own, low, high = (tables.table(name) for name in ("own", "low", "high"))
    ids = torch.arange(NUM_IDS)
    expected = torch.cat([own, high]) + low[ids % 4]
    assert torch.equal(tables.rows("f", ids), expected)


@pytest.mark.parametrize("plan", [padded, split])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_fused_sgd_is_a_step_along_the_dense_gradient(plan, pooling):
    fused = build(plan(pooling=pooling), optimizer=TableOptimizer(kind="sgd", learning_rate=0.5))
    dense = build(plan(pooling=pooling), optimizer=None)
    features = draw(4)
    grad = torch.randn(6, sum(fused.embedding_dims.values()))
    for tables in (fused, dense):
        tables(features).values().backward(grad)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter -= 0.5 * parameter.grad
    for name, expected in dense.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], expected, **ROUNDING)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_padding_is_zeros_behind_the_rows(pooling):
    tables = build(padded(pooling=pooling))
    values = tables(draw(4)).values().view(6, 2, 6)
    assert not values[:, :, 4:].any()
    assert values[:, :, :4].any()
    assert not tables.rows("f", torch.arange(NUM_IDS))[:, 4:].any()


def test_sequences_are_padded_too():
    tables = build(padded(pooling="none"))
    features = draw(4)
    found = tables.sequences(features)
    for key in FEATURES:
        assert torch.equal(found[key].values(), tables.rows(key, features[key].values()))


def test_virtual_features_pad_and_refuse_means_of_split_outputs():
    vectors = VirtualFeatures(padded())
    assert vectors.plan.outputs[0].padding == 2
    VirtualFeatures(split())
    with pytest.raises(ValueError, match="not linear in its rows"):
        VirtualFeatures(split(pooling="mean"))
