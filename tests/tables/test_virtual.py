"""Plans through TorchRec's own embedding bags."""

import dataclasses

import pytest
import torch
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.methods.compo_emb import CompoEmb
from recemb.methods.unified import Unified
from recemb.tables.blueprint import Blueprint
from recemb.tables.lookup_plan import (
    LookupPlan,
    Output,
    PhysicalTable,
    Projection,
    RowProgram,
    VirtualLookup,
)
from recemb.tables.method import Budget
from recemb.tables.planned import PlannedTables
from recemb.tables.program import ABSENT, Digit, Hash, Remap
from recemb.tables.spec import TableSpec
from recemb.tables.virtual import VirtualFeatures

SPECS = [
    TableSpec(name="a", num_embeddings=500, embedding_dim=8, feature_names=("f0", "f1")),
    TableSpec(name="b", num_embeddings=90, embedding_dim=8, feature_names=("f2",), pooling="mean"),
]
COUNTS = {f: torch.arange(n) for f, n in (("f0", 500), ("f1", 500), ("f2", 90))}
# Sums of float32 numbers in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
DIGITS = (Digit(modulus=30),), (Digit(divisor=30),)


def digits_plan(combine, *, pooling="sum", projected=False, row=None):
    """Return a plan of quotients and remainders for one feature."""
    return LookupPlan(
        tables=tuple(
            PhysicalTable(name=name, num_rows=rows, width=8) for name, rows in (("r", 30), ("q", 3))
        ),
        outputs=(
            Output(
                key="f2",
                feature="f2",
                owner="b",
                num_ids=90,
                embedding_dim=5 if projected else (16 if combine == "concat" else 8),
                pooling=pooling,
                lookups=tuple(
                    VirtualLookup(table=name, program=program, row=row or RowProgram())
                    for name, program in zip("rq", DIGITS, strict=True)
                ),
                combine=combine,
                projection="p" if projected else None,
            ),
        ),
        projections=(Projection(name="p", in_width=8, out_width=5),) if projected else (),
    )


def features_of(*, max_length=1, weighted=False):
    generator = torch.Generator().manual_seed(1)
    shape = (3, 7)
    lengths = torch.ones(shape, dtype=torch.int32)
    if max_length > 1:
        lengths = torch.randint(0, max_length + 1, shape, generator=generator).int()
    values = [
        torch.randint(0, n, (int(num),), generator=generator)
        for n, num in zip((500, 500, 90), lengths.sum(1), strict=True)
    ]
    total = int(lengths.sum())
    weights = torch.randn(total, generator=generator) if weighted else None
    return KeyedJaggedTensor(
        keys=["f0", "f1", "f2"], values=torch.cat(values), lengths=lengths.view(-1), weights=weights
    )


def through_torchrec(tables, features):
    """Return the vectors that TorchRec's bags give with the weights of `tables`, and the bags."""
    virtual = VirtualFeatures(
        tables.plan,
        is_weighted=features.weights_or_none() is not None,
        buffers=dict(tables.plan_buffers.items()),
        projections={name: p.detach().clone() for name, p in tables.projections.items()},
    )
    bags = EmbeddingBagCollection(tables=virtual.configs(), is_weighted=virtual.is_weighted)
    with torch.no_grad():
        for name, bag in bags.embedding_bags.items():
            bag.weight.copy_(tables.table(name))
    return virtual.regroup(bags(virtual(features))), bags


def pruned_blueprint():
    """Return the plan of tables of which every second id has a row."""
    buffers, tables, outputs = {}, [], []
    for spec in SPECS:
        rows = torch.arange(spec.num_embeddings)
        buffers[spec.name] = torch.where(rows % 2 == 0, rows // 2, ABSENT)
        num_rows = (spec.num_embeddings + 1) // 2
        tables.append(PhysicalTable(name=spec.name, num_rows=num_rows, width=8))
        for feature in spec.feature_names:
            lookup = VirtualLookup(table=spec.name, program=(Remap(buffer=spec.name),))
            outputs.append(
                Output(
                    key=feature,
                    feature=feature,
                    owner=spec.name,
                    num_ids=spec.num_embeddings,
                    embedding_dim=8,
                    pooling=spec.pooling,
                    lookups=(lookup,),
                )
            )
    limits = {table.name: table.num_rows for table in tables}
    plan = LookupPlan(tables=tuple(tables), outputs=tuple(outputs), buffers=limits)
    return Blueprint(plan=plan, buffers=buffers)


def blueprints():
    budget = Budget(ratio=0.3)
    yield pytest.param(
        Unified(lookups=2, exact_below=0).blueprint(SPECS, COUNTS, budget), id="unified"
    )
    yield pytest.param(
        Unified(lookups=2, exact_below=100).blueprint(SPECS, COUNTS, budget), id="unified exact"
    )
    yield pytest.param(
        CompoEmb(combine="sum").blueprint(SPECS, COUNTS, budget), id="quotient and remainder"
    )
    yield pytest.param(pruned_blueprint(), id="absent rows")


@pytest.mark.parametrize(
    "inputs", [{}, {"max_length": 3}, {"max_length": 3, "weighted": True}], ids=str
)
@pytest.mark.parametrize("made", list(blueprints()))
def test_torchrec_s_bags_give_the_same_vectors(made: Blueprint, inputs):
    tables = made.tables(SPECS, optimizer=None, seed=1, device=torch.device("cpu"))
    features = features_of(**inputs)
    expected = tables(features)
    found, _ = through_torchrec(tables, features)
    assert list(found.keys()) == list(expected.keys())
    torch.testing.assert_close(found.values(), expected.values(), **ROUNDING)


def test_gradients_of_shared_rows_are_those_of_the_tables():
    made = Unified(lookups=2, exact_below=0).blueprint(SPECS, COUNTS, Budget(ratio=0.02))
    tables = made.tables(SPECS, optimizer=None, seed=1, device=torch.device("cpu"))
    features = features_of(max_length=3)
    found, bags = through_torchrec(tables, features)
    torch.manual_seed(0)
    direction = torch.randn_like(found.values())
    (found.values() * direction).sum().backward()
    (tables(features).values() * direction).sum().backward()
    (name,) = bags.embedding_bags
    rows = bags.embedding_bags[name].weight.grad
    torch.testing.assert_close(rows, tables.engine.stores[0].weight.grad, **ROUNDING)


def test_projections_are_applied():
    plan = digits_plan("sum", projected=True)
    spec = dataclasses.replace(SPECS[1], embedding_dim=5, pooling="sum")
    tables = PlannedTables([spec], plan, seed=2)
    features = features_of(max_length=3)
    found, _ = through_torchrec(tables, features)
    torch.testing.assert_close(found.values(), tables(features).values(), **ROUNDING)


def test_tables_that_are_pooled_in_two_ways_are_weighted():
    made = Unified(lookups=1, exact_below=0).blueprint(SPECS, COUNTS, Budget(ratio=0.3))
    virtual = VirtualFeatures(made.plan)
    assert virtual.is_weighted
    assert [config.pooling.name for config in virtual.configs()] == ["SUM"]


def test_a_unified_table_is_one_table_with_a_feature_for_every_lookup():
    made = Unified(lookups=2, exact_below=0).blueprint(SPECS, COUNTS, Budget(ratio=0.3))
    (config,) = VirtualFeatures(made.plan).configs()
    assert config.feature_names == ["f0#0", "f0#1", "f1#0", "f1#1", "f2#0", "f2#1"]
    assert config.embedding_dim == 4


def test_half_precision_is_handed_on():
    table = PhysicalTable(name="t", num_rows=9, width=8, dtype="float16")
    output = Output(
        key="f2",
        feature="f2",
        owner="b",
        num_ids=None,
        embedding_dim=8,
        pooling="sum",
        lookups=(VirtualLookup(table="t", program=(Hash(seed=1, num_rows=9),)),),
    )
    (config,) = VirtualFeatures(LookupPlan(tables=(table,), outputs=(output,))).configs()
    assert config.data_type.name == "FP16"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (digits_plan("product"), "'f2' is not linear in its rows"),
        (digits_plan("sum", row=RowProgram(prefix=3)), "'f2' is not linear in its rows"),
        (digits_plan("sum", pooling="none"), "'f2' is a sequence"),
    ],
)
def test_what_bags_cannot_give_is_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        VirtualFeatures(plan)


def test_weights_are_refused_unless_announced():
    virtual = VirtualFeatures(digits_plan("sum"))
    with pytest.raises(ValueError, match="construct it with is_weighted"):
        virtual(features_of(weighted=True))


def test_an_id_out_of_range_is_refused():
    virtual = VirtualFeatures(digits_plan("sum"))
    features = KeyedJaggedTensor(
        keys=["f2"], values=torch.tensor([90]), lengths=torch.ones(1, dtype=torch.int32)
    )
    with pytest.raises(ValueError, match="90"):
        virtual(features)
