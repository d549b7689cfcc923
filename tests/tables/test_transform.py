"""Functions between rows and their combination: gradients, updates, saving."""

import pytest
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.program import Hash, Offset
from recemb.tables.spec import TableSpec
from recemb.tables.transform import RowTransform

WIDTH = 4
SPECS = [
    TableSpec(name="a", num_embeddings=9, embedding_dim=WIDTH, feature_names=("f0",)),
    TableSpec(
        name="b",
        num_embeddings=5,
        embedding_dim=WIDTH,
        feature_names=("f1", "f2"),
        pooling="mean",
    ),
    TableSpec(name="w", num_embeddings=9, embedding_dim=1, feature_names=("f0",)),
]


class Gates(RowTransform):
    """Multiplies every row by its table's gate and adds its place; the penalty is the gates'."""

    def __init__(self, group):
        super().__init__(group)
        self.gates = nn.Parameter(torch.arange(2.0, 2.0 + len(group.tables)))
        self.hidden = nn.Parameter(torch.ones(()))

    def forward(self, vectors, rows, tables):
        return vectors * self.gates[tables].unsqueeze(1) + 0.01 * rows.unsqueeze(1)

    def penalty(self):
        return self.gates.sum()

    def dense_parameters(self):
        return [self.gates]


def gates_of(group):
    return Gates(group) if group.width == WIDTH else None


def plan():
    widths = {"a": WIDTH, "b": WIDTH, "w": 1}
    return LookupPlan(
        tables=tuple(
            PhysicalTable(name=n, num_rows={"a": 9, "b": 5, "w": 9}[n], width=w)
            for n, w in widths.items()
        ),
        outputs=tuple(
            Output(
                key=key,
                feature=key.split("@")[0],
                owner=name,
                num_ids={"a": 9, "b": 5, "w": 9}[name],
                embedding_dim=widths[name],
                pooling="mean" if name == "b" else "sum",
                lookups=(VirtualLookup(table=name),),
            )
            for key, name in (("f0@a", "a"), ("f1", "b"), ("f2", "b"), ("f0@w", "w"))
        ),
    )


def build(*, optimizer=None, factory=gates_of):
    return PlannedTables(SPECS, plan(), optimizer=optimizer, transform=factory, seed=3)


def features_of(lengths):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor(lengths).view(3, -1).sum(1).tolist()
    values = [
        torch.randint(0, n, (size,), generator=generator)
        for n, size in zip((9, 5, 5), sizes, strict=True)
    ]
    return KeyedJaggedTensor(
        keys=["f0", "f1", "f2"],
        values=torch.cat(values),
        lengths=torch.tensor(lengths, dtype=torch.int32),
    )


ONE_HOT, BAGS = [1] * 6, [2, 0, 1, 3, 1, 1]


def expected_rows(tables, name):
    """Return the transformed rows of a table, written out."""
    place, first = {"a": (0, 0), "b": (1, 9), "w": (None, 0)}[name]
    weight = tables.table(name)
    if place is None:
        return weight
    gates = tables.transforms.all()[0].gates
    rows = torch.arange(weight.shape[0]).unsqueeze(1) + first
    return weight * gates[place] + 0.01 * rows


@pytest.mark.parametrize("lengths", [ONE_HOT, BAGS], ids=["one id", "bags"])
@pytest.mark.parametrize("optimizer", [None, TableOptimizer()], ids=["dense", "fused"])
def test_rows_are_transformed_before_they_are_pooled(lengths, optimizer):
    tables = build(optimizer=optimizer)
    features = features_of(lengths)
    found = tables(features).to_dict()
    for key, name in (("f0@a", "a"), ("f1", "b"), ("f2", "b"), ("f0@w", "w")):
        bags = features[key.split("@")[0]]
        rows = expected_rows(tables, name)[bags.values()]
        bag_of = torch.arange(2).repeat_interleave(bags.lengths())
        total = torch.zeros(2, rows.shape[1]).index_add(0, bag_of, rows)
        if name == "b":
            total = total / bags.lengths().clamp(min=1).unsqueeze(1)
        torch.testing.assert_close(found[key], total)


def test_rows_says_the_transformed_ones():
    tables = build()
    for key, name in (("f0@a", "a"), ("f2", "b"), ("f0@w", "w")):
        ids = torch.arange(tables.table(name).shape[0])
        torch.testing.assert_close(tables.rows(key, ids), expected_rows(tables, name))


def test_sequences_are_transformed():
    spec = TableSpec(
        name="a", num_embeddings=9, embedding_dim=WIDTH, feature_names=("f0",), pooling="none"
    )
    output = Output(
        key="f0",
        feature="f0",
        owner="a",
        num_ids=9,
        embedding_dim=WIDTH,
        pooling="none",
        lookups=(VirtualLookup(table="a"),),
    )
    table = PhysicalTable(name="a", num_rows=9, width=WIDTH)
    made = LookupPlan(tables=(table,), outputs=(output,))
    tables = PlannedTables([spec], made, transform=gates_of)
    features = features_of(BAGS)
    found = tables.sequences(features)["f0"].values()
    torch.testing.assert_close(found, expected_rows(tables, "a")[features["f0"].values()])


def test_a_fused_step_is_that_along_the_dense_gradient():
    fused = build(optimizer=TableOptimizer(kind="sgd", learning_rate=0.5))
    dense = build()
    features = features_of(BAGS)
    grad = torch.randn(2, fused(features).values().shape[1])
    for tables in (fused, dense):
        tables(features).values().backward(grad)
    for store, twin in zip(fused.engine.stores, dense.engine.stores, strict=True):
        expected = twin.weight.detach() - 0.5 * twin.weight.grad
        torch.testing.assert_close(store.weight, expected)
    mine, its = fused.transforms.all()[0].gates, dense.transforms.all()[0].gates
    torch.testing.assert_close(mine.grad, its.grad)


def test_gradients_of_the_parameters_are_right():
    tables, features = build(), features_of(BAGS)
    gates = tables.transforms.all()[0].gates
    vectors = tables(features).values()
    grad = torch.randn_like(vectors)
    (found,) = torch.autograd.grad(vectors, gates, grad)
    # The vectors are linear in the gates, so differences of any size are exact.
    base = vectors.detach()
    for place in range(2):
        with torch.no_grad():
            gates[place] += 1
            slope = tables(features).values() - base
            gates[place] -= 1
        torch.testing.assert_close(found[place], (slope * grad).sum())


def test_held_rows_leave_the_transform_its_gradient():
    tables = build(optimizer=TableOptimizer())
    before = [store.weight.clone() for store in tables.engine.stores]
    with tables.hold_rows():
        tables(features_of(BAGS)).values().square().sum().backward()
    assert tables.transforms.all()[0].gates.grad.abs().max() > 0
    for store, weight in zip(tables.engine.stores, before, strict=True):
        assert torch.equal(store.weight, weight)


def test_penalties_are_added_up():
    assert build().penalty().item() == 5.0
    assert build(factory=None).penalty().item() == 0.0


def test_the_dense_optimizer_gets_what_the_transform_leaves_to_it():
    tables = build(optimizer=TableOptimizer())
    (found,) = tables.dense_parameters()
    assert found is tables.transforms.all()[0].gates
    # Without a fused optimizer the rows are the dense optimizer's too.
    assert len(build().dense_parameters()) == 3


def test_saved_and_loaded_the_tables_are_the_same():
    tables, other = build(optimizer=TableOptimizer()), build(optimizer=TableOptimizer())
    with torch.no_grad():
        tables.transforms.all()[0].gates.fill_(7)
        tables.table("a").fill_(3)
    other.load_state_dict(tables.state_dict())
    features = features_of(BAGS)
    assert torch.equal(tables(features).values(), other(features).values())
    assert tables.storage().train_bytes == sum(t.nbytes for t in tables.state_dict().values())


def test_a_missing_parameter_of_a_transform_is_noticed():
    tables = build()
    state = tables.state_dict()
    (name,) = (n for n in state if n.endswith("gates"))
    state.pop(name)
    with pytest.raises(RuntimeError, match="gates"):
        build().load_state_dict(state)


def test_freezing_is_the_method_s_own():
    with pytest.raises(NotImplementedError, match="must be the method's own"):
        build().freeze()


def test_shared_rows_know_their_physical_table():
    seen = []

    class Spy(RowTransform):
        def forward(self, vectors, rows, tables):
            seen.append((rows.tolist(), tables.tolist()))
            return vectors

    specs = [
        TableSpec(name=n, num_embeddings=50, embedding_dim=WIDTH, feature_names=(f"f{i}",))
        for i, n in enumerate("ab")
    ]
    programs = [(Offset(first=3),), (Hash(seed=5, num_rows=1), Offset(first=2))]
    outputs = tuple(
        Output(
            key=s.feature_names[0],
            feature=s.feature_names[0],
            owner=s.name,
            num_ids=50,
            embedding_dim=WIDTH,
            pooling="sum",
            lookups=(VirtualLookup(table="shared", program=program),),
        )
        for s, program in zip(specs, programs, strict=True)
    )
    table = PhysicalTable(name="shared", num_rows=60, width=WIDTH)
    tables = PlannedTables(specs, LookupPlan(tables=(table,), outputs=outputs), transform=Spy)
    features = KeyedJaggedTensor(
        keys=["f0", "f1"],
        values=torch.tensor([1, 40]),
        lengths=torch.ones(2, dtype=torch.int32),
    )
    tables(features)
    assert seen == [([4, 2], [0, 0])]
