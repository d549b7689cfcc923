"""Plans of every kind against the readable rows, forward and backward."""

import dataclasses

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import (
    LookupPlan,
    Output,
    PhysicalTable,
    Projection,
    RowProgram,
    VirtualLookup,
)
from recemb.tables.optimizer import KINDS, TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.program import ABSENT, Digit, Hash, Offset, Remap
from recemb.tables.spec import TableSpec

# Sums of a few float32 products in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
# The same over some optimizer steps, whose square roots and divisions amplify it.
STEPS = {"rtol": 1e-4, "atol": 1e-5}
BATCH_SIZE, NUM_IDS = 6, 20
FEATURES = ("f", "g")


def output(lookups, *, feature="f", width=4, num_ids=NUM_IDS, **changes):
    named = {"owner": "t", "pooling": "sum", "key": feature, **changes}
    return Output(
        feature=feature, num_ids=num_ids, embedding_dim=width, lookups=tuple(lookups), **named
    )


def both(lookups_of, tables, *, buffers=None, **changes):
    """Return a plan in which features f and g have lookups of the same kind, seeds apart."""
    return LookupPlan(
        tables=tuple(tables),
        buffers=buffers or {},
        outputs=tuple(output(lookups_of(i), feature=f, **changes) for i, f in enumerate(FEATURES)),
    )


def table(name="t", num_rows=NUM_IDS, width=4, **changes):
    return PhysicalTable(name=name, num_rows=num_rows, width=width, **changes)


def hashed(seed, num_rows=7, **changes):
    return VirtualLookup(table="t", program=(Hash(seed=seed, num_rows=num_rows),), **changes)


def digits(modulus, divisor=1, name="q"):
    return VirtualLookup(table=name, program=(Digit(divisor=divisor, modulus=modulus),))


REMAP = torch.tensor([3, ABSENT, 0, 1, ABSENT, *range(15)], dtype=torch.int32)
CODES = torch.stack([torch.arange(NUM_IDS) % 5, torch.arange(NUM_IDS) // 5], dim=1).int()
BUFFERS = {"remap": REMAP, "codes": CODES}


def remapped(buffer="remap", column=None, name="t"):
    return VirtualLookup(table=name, program=(Remap(buffer=buffer, column=column),))


def weighted_plan():
    return both(
        lambda i: [hashed(2 * i), hashed(2 * i + 1)],
        [table(num_rows=7), table("importance", 9, 2)],
        combine="weighted",
        importance=VirtualLookup(table="importance", program=(Hash(seed=77, num_rows=9),)),
    )


def projected_plan(combine, width):
    plan = both(
        lambda i: [hashed(i), hashed(i + 2)], [table(num_rows=7)], width=width, combine=combine
    )
    projection = Projection(name="p", in_width=width, out_width=3)
    outputs = tuple(
        dataclasses.replace(o, projection="p", embedding_dim=3) for o in (plan.outputs[0],)
    )
    return LookupPlan(
        tables=plan.tables, outputs=(*outputs, plan.outputs[1]), projections=(projection,)
    )


PLANS = {
    "identity": both(lambda i: [VirtualLookup(table="t")], [table()]),
    "offset": both(
        lambda i: [VirtualLookup(table="t", program=(Offset(first=NUM_IDS * i),))],
        [table(num_rows=2 * NUM_IDS)],
    ),
    "hash": both(lambda i: [hashed(i)], [table(num_rows=7)]),
    "hash with exact rows": both(
        lambda i: [VirtualLookup(table="t", program=(Hash(seed=i, num_rows=9, exact=4),))],
        [table(num_rows=9)],
    ),
    "several probes": both(
        lambda i: [hashed(3 * i), hashed(3 * i + 1), hashed(3 * i + 2)],
        [table(num_rows=7)],
        width=12,
    ),
    "probes and an exact row": LookupPlan(
        tables=(table(num_rows=40),),
        outputs=(
            output([hashed(1), hashed(2)], width=8),
            output([VirtualLookup(table="t", program=(Offset(first=7),))], feature="g"),
        ),
    ),
    "sum": both(lambda i: [hashed(i), hashed(i + 2)], [table(num_rows=7)], combine="sum"),
    "mean": both(lambda i: [hashed(i), hashed(i + 2)], [table(num_rows=7)], combine="mean"),
    "sum over two types": both(
        lambda i: [VirtualLookup(table="t"), VirtualLookup(table="u")],
        [table(), table("u", dtype="bfloat16")],
        combine="sum",
    ),
    "concat of two widths": both(
        lambda i: [VirtualLookup(table="t"), VirtualLookup(table="u")],
        [table(), table("u", width=2)],
        width=6,
    ),
    "zeros behind": both(
        lambda i: [VirtualLookup(table="t")], [table(width=2)], width=5, padding=3
    ),
    "product": both(
        lambda i: [digits(5), digits(None, 5, "r")],
        [table("q", 5), table("r", 4)],
        combine="product",
    ),
    "product, absent rows and zeros": both(
        lambda i: [remapped(), remapped(name="u")],
        [table(), table("u")],
        combine="product",
        width=6,
        padding=2,
        buffers={"remap": NUM_IDS},
    ),
    "product of three": both(
        lambda i: [digits(3), digits(3, 3, "r"), digits(None, 9, "s")],
        [table("q", 3), table("r", 3), table("s", 3)],
        combine="product",
    ),
    "weighted": weighted_plan(),
    "remap": both(lambda i: [remapped()], [table()], buffers={"remap": NUM_IDS}),
    "remap and product": both(
        lambda i: [remapped(), VirtualLookup(table="u")],
        [table(), table("u")],
        combine="product",
        buffers={"remap": NUM_IDS},
    ),
    "codes": both(
        lambda i: [remapped("codes", 0, "a"), remapped("codes", 1, "b")],
        [table("a", 5, 2), table("b", 5, 2)],
        buffers={"codes": 5},
    ),
    "projected": projected_plan("concat", 8),
    "projected sum": projected_plan("sum", 4),
    "masked": both(
        lambda i: [VirtualLookup(table="t", row=RowProgram(threshold=2.0, prefix=3))], [table()]
    ),
    "unbounded ids": both(lambda i: [hashed(i)], [table(num_rows=7)], num_ids=None),
}
INPUTS = {
    "one id": {},
    "bags": {"max_length": 3},
    "weighted bags": {"max_length": 3, "weighted": True},
}


def specs_of(plan):
    return [
        TableSpec(
            name=f"logical_{o.key}",
            num_embeddings=NUM_IDS,
            embedding_dim=o.embedding_dim,
            feature_names=(o.feature,),
            pooling=o.pooling,
        )
        for o in plan.outputs
    ]


def build(plan, **changes):
    initial = {t.name: Initial(distribution="normal", spread=1.0) for t in plan.tables}
    return PlannedTables(specs_of(plan), plan, buffers=BUFFERS, initial=initial, **changes)


def draw(*, seed=0, max_length=None, weighted=False, low=0, high=NUM_IDS):
    generator = torch.Generator().manual_seed(seed)
    num = len(FEATURES) * BATCH_SIZE
    lengths = torch.ones(num, dtype=torch.int32)
    if max_length is not None:
        lengths = torch.randint(0, max_length + 1, (num,), generator=generator, dtype=torch.int32)
    values = torch.randint(low, high, (int(lengths.sum()),), generator=generator)
    weights = torch.randn(values.numel(), generator=generator) if weighted else None
    return KeyedJaggedTensor(keys=list(FEATURES), values=values, lengths=lengths, weights=weights)


def pooled_by_rows(tables, features):
    """The definition: the sum, or mean, of the rows of each bag."""
    parts = []
    for o in tables.plan.outputs:
        bags = features[o.feature]
        vectors = tables.rows(o.key, bags.values())
        if bags.weights_or_none() is not None:
            vectors = vectors * bags.weights().unsqueeze(1)
        pooled = torch.zeros(BATCH_SIZE, o.embedding_dim)
        bag_of = torch.arange(BATCH_SIZE).repeat_interleave(bags.lengths())
        if o.pooling == "mean":
            vectors = vectors / bags.lengths()[bag_of].unsqueeze(1)
        parts.append(pooled.index_add(0, bag_of, vectors))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("name", PLANS)
def test_output_is_the_pooled_rows(name, inputs):
    tables = build(PLANS[name])
    features = draw(**INPUTS[inputs])
    torch.testing.assert_close(
        tables(features).values(), pooled_by_rows(tables, features), **ROUNDING
    )


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("name", [n for n in PLANS if not n.startswith("remap")])
def test_mean_pooling_divides_by_the_number_of_ids(name, inputs):
    plan = PLANS[name]
    outputs = tuple(dataclasses.replace(o, pooling="mean") for o in plan.outputs)
    tables = build(dataclasses.replace(plan, outputs=outputs))
    features = draw(**INPUTS[inputs])
    torch.testing.assert_close(
        tables(features).values(), pooled_by_rows(tables, features), **ROUNDING
    )


@pytest.mark.parametrize("name", PLANS)
def test_sequences_are_the_rows_of_every_id(name):
    plan = PLANS[name]
    outputs = tuple(dataclasses.replace(o, pooling="none") for o in plan.outputs)
    tables = build(dataclasses.replace(plan, outputs=outputs))
    features = draw(max_length=3, weighted=True)
    for key, found in tables.sequences(features).items():
        bags = features[tables.plan.outputs[FEATURES.index(key)].feature]
        torch.testing.assert_close(found.values(), tables.rows(key, bags.values()), **ROUNDING)
        assert torch.equal(found.lengths(), bags.lengths())
        assert torch.equal(found.weights(), bags.weights())


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("name", [n for n in PLANS if n != "sum over two types"])
def test_fused_sgd_is_a_step_along_the_dense_gradient(name, backend, inputs):
    optimizer = TableOptimizer(kind="sgd", learning_rate=0.5)
    fused = build(PLANS[name], optimizer=optimizer, backend=backend)
    dense = build(PLANS[name])
    features = draw(**INPUTS[inputs])
    grad = torch.randn(BATCH_SIZE, sum(o.embedding_dim for o in fused.plan.outputs))
    for tables in (fused, dense):
        tables(features).values().backward(grad)
    for store, twin in zip(fused.engine.stores, dense.engine.stores, strict=True):
        expected = twin.weight.detach() - 0.5 * twin.weight.grad
        torch.testing.assert_close(store.weight, expected, **ROUNDING)
    for mine, twin in zip(
        fused.projections.parameters(), dense.projections.parameters(), strict=True
    ):
        torch.testing.assert_close(mine.grad, twin.grad, **ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["several probes", "product", "weighted", "remap"])
def test_every_optimizer_sums_all_reads_of_a_row_before_it_steps(name, kind):
    """Against torch.optim's dense formulas, which agree with touched rows in the first step."""
    optimizer = TableOptimizer(kind=kind, learning_rate=0.1, eps=1e-3)
    fused, dense = build(PLANS[name], optimizer=optimizer), build(PLANS[name])
    features = draw(max_length=3)
    grad = torch.randn(BATCH_SIZE, sum(o.embedding_dim for o in fused.plan.outputs))
    for tables in (fused, dense):
        tables(features).values().backward(grad)
    for store, twin in zip(fused.engine.stores, dense.engine.stores, strict=True):
        g = twin.weight.grad.double()
        square = g**2 if "rowwise" not in kind else (g**2).mean(dim=1, keepdim=True)
        # First step: m / (1 - beta1) = g and v / (1 - beta2) = g^2, so all but SGD agree.
        step = g if kind == "sgd" else g / (square.sqrt() + 1e-3)
        expected = (twin.weight.detach() - 0.1 * step).float()
        torch.testing.assert_close(store.weight, expected, **STEPS)


def test_a_table_that_two_kinds_of_outputs_read_is_updated_once():
    plan = LookupPlan(
        tables=(table(num_rows=7), table("u")),
        outputs=(
            output([hashed(1)]),
            output([hashed(2), VirtualLookup(table="u")], feature="g", combine="product"),
        ),
    )
    optimizer = TableOptimizer(kind="adagrad", learning_rate=0.1, eps=0.0)
    fused, dense = build(plan, optimizer=optimizer), build(plan)
    features, grad = draw(max_length=3), torch.randn(BATCH_SIZE, 8)
    for tables in (fused, dense):
        tables(features).values().backward(grad)
    g = dense.engine.stores[0].weight.grad
    expected = dense.engine.stores[0].weight.detach() - 0.1 * g.sign()
    torch.testing.assert_close(fused.engine.stores[0].weight, expected, **STEPS)
    torch.testing.assert_close(fused.engine.stores[0].state["sum"], g**2, **STEPS)


@pytest.mark.parametrize("name", ["hash", "product", "weighted"])
def test_weights_of_ids_get_the_same_gradient_fused_and_dense(name):
    found = []
    for optimizer in (None, TableOptimizer(learning_rate=0.5)):
        tables = build(PLANS[name], optimizer=optimizer)
        features = draw(max_length=3, weighted=True)
        features.weights().requires_grad_()
        (tables(features).values() ** 2).sum().backward()
        found.append(features.weights().grad)
    torch.testing.assert_close(*found, **ROUNDING)


def test_any_int64_is_an_id_of_an_unbounded_feature():
    tables = build(PLANS["unbounded ids"])
    features = draw(low=-(2**62), high=2**62)
    torch.testing.assert_close(
        tables(features).values(), pooled_by_rows(tables, features), **ROUNDING
    )


def test_an_absent_id_does_not_count_in_the_mean():
    plan = PLANS["remap"]
    outputs = tuple(dataclasses.replace(o, pooling="mean") for o in plan.outputs)
    tables = build(dataclasses.replace(plan, outputs=outputs))
    features = KeyedJaggedTensor(
        keys=list(FEATURES),
        values=torch.tensor([0, 1, 2, 1, 1]),
        lengths=torch.tensor([3, 2], dtype=torch.int32),
    )
    weight = tables.table("t").detach()
    found = tables(features).to_dict()
    torch.testing.assert_close(found["f"][0], (weight[3] + weight[0]) / 2)
    assert torch.equal(found["g"], torch.zeros(1, 4))


def test_dequantised_rows_are_code_times_scale_plus_bias():
    plan = LookupPlan(
        tables=(table(dtype="int8"),),
        outputs=tuple(
            output(
                [VirtualLookup(table="t", row=RowProgram(scale="scale", bias="bias"))], feature=f
            )
            for f in FEATURES
        ),
    )
    scale, bias = torch.rand(NUM_IDS), torch.randn(NUM_IDS)
    tables = PlannedTables(specs_of(plan), plan, buffers={"scale": scale, "bias": bias})
    codes = torch.randint(-128, 128, (NUM_IDS, 4), dtype=torch.int8)
    tables.table("t").copy_(codes)
    features = draw(max_length=3)
    expected = codes * scale.unsqueeze(1) + bias.unsqueeze(1)
    torch.testing.assert_close(tables.rows("f", torch.arange(NUM_IDS)), expected)
    torch.testing.assert_close(
        tables(features).values(), pooled_by_rows(tables, features), **ROUNDING
    )


@pytest.mark.parametrize("name", PLANS)
def test_state_dict_round_trip_gives_the_same_vectors(name):
    one = build(PLANS[name], optimizer=TableOptimizer())
    two = build(PLANS[name], optimizer=TableOptimizer(), seed=1)
    two.load_state_dict(one.state_dict())
    features = draw(max_length=3)
    assert torch.equal(one(features).values(), two(features).values())


@pytest.mark.parametrize("name", PLANS)
def test_storage_is_the_bytes_of_the_state_dict(name):
    tables = build(PLANS[name], optimizer=TableOptimizer(kind="adam"))
    total = sum(t.nbytes for t in tables.state_dict().values())
    assert tables.storage().train_bytes == total
    frozen = tables.freeze()
    assert frozen.storage().serve_bytes == sum(t.nbytes for t in frozen.state_dict().values())


@pytest.mark.parametrize("name", PLANS)
def test_frozen_tables_give_the_same_bits(name):
    tables = build(PLANS[name], optimizer=TableOptimizer())
    features = draw(max_length=3)
    assert torch.equal(tables.freeze()(features).values(), tables(features).values())
