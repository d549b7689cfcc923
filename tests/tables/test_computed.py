"""Computed tables against stored ones of the same rows: forward, backward, state, errors."""

import pytest
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.computed import ComputedTables
from recemb.tables.full import full_tables
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.row_source import RowSource
from recemb.tables.spec import TableSpec

# Sums of a few float32 products in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
SGD = TableOptimizer(kind="sgd", learning_rate=0.5)


class Stored(RowSource):
    """Rows that are stored after all, so that there is something to compare with."""

    form = "stored"

    def __init__(self, *, num_embeddings, embedding_dim, device=None):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim, device=device))
        self.asked = []

    def settings(self):
        return {"num_embeddings": self.num_embeddings, "embedding_dim": self.embedding_dim}

    def forward(self, table, ids):
        self.asked.append((table, ids.clone()))
        return self.weight[ids]

    def initialise(self, generator):
        self.weight.detach().normal_(generator=generator)


def computed(specs, names, *, optimizer=None, seed=0, bounds="error"):
    """Return tables of which `names` are computed."""
    rest = [s for s in specs if s.name not in names]
    tables = ComputedTables(
        specs,
        sources={
            s.name: Stored(num_embeddings=s.num_embeddings, embedding_dim=s.embedding_dim)
            for s in specs
            if s.name in names
        },
        source_of={name: name for name in names},
        planned=full_tables(rest, optimizer=optimizer, seed=seed) if rest else None,
        optimizer=optimizer,
        bounds=bounds,
    )
    tables.initialise(seed)
    return tables


def stored_twin(tables, *, optimizer=None):
    """Return full tables with the weights of `tables`."""
    twin = full_tables(tables.specs, optimizer=optimizer)
    state = {k: v for k, v in tables.state_dict().items() if not k.startswith("optimizer")}
    assert state.keys() == {k for k in twin.state_dict() if not k.startswith("optimizer")}
    twin.load_state_dict(state)
    return twin


SPLITS = [("a",), ("a", "wa"), ("b",), ("a", "b", "c", "wa", "wb"), ()]
INPUTS = [{}, {"max_length": 3}, {"max_length": 3, "weighted": True}, {"dtype": torch.int32}]


@pytest.mark.parametrize("inputs", INPUTS, ids=str)
@pytest.mark.parametrize("names", SPLITS, ids=str)
def test_vectors_are_those_of_stored_tables(mixed_specs, make_features, names, inputs):
    tables = computed(mixed_specs, names)
    twin = stored_twin(tables)
    features = make_features(mixed_specs, 7, **inputs)
    found, expected = tables(features), twin(features)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found.values(), expected.values(), **ROUNDING)


@pytest.mark.parametrize("inputs", INPUTS, ids=str)
def test_updates_are_those_of_stored_tables(mixed_specs, make_features, inputs):
    tables = computed(mixed_specs, ("a", "wb"), optimizer=SGD)
    twin = stored_twin(tables, optimizer=SGD)
    features = make_features(mixed_specs, 7, **inputs)
    grad = torch.randn(7, sum(tables.embedding_dims.values()))
    for each in (tables, twin):
        each(features).values().backward(grad)
    assert len(tables.dense_parameters()) == 2
    with torch.no_grad():
        for parameter in tables.dense_parameters():
            parameter -= 0.5 * parameter.grad
    state = tables.state_dict()
    for key, expected in twin.state_dict().items():
        torch.testing.assert_close(state[key], expected, **ROUNDING)


def test_weights_of_ids_have_gradients(mixed_specs, make_features):
    tables = computed(mixed_specs, ("a", "b", "wb"))
    twin = stored_twin(tables)
    drawn = make_features(mixed_specs, 7, max_length=3, weighted=True)
    grad = torch.randn(7, sum(tables.embedding_dims.values()))
    grads = []
    for each in (tables, twin):
        weights = drawn.weights().clone().requires_grad_()
        features = KeyedJaggedTensor(
            keys=drawn.keys(), values=drawn.values(), lengths=drawn.lengths(), weights=weights
        )
        each(features).values().backward(grad)
        grads.append(weights.grad)
    torch.testing.assert_close(*grads, **ROUNDING)


def test_sequences_are_the_rows_of_stored_tables(make_features):
    specs = [
        TableSpec(name=n, num_embeddings=9, embedding_dim=4, feature_names=(f, "z"), pooling="none")
        for n, f in (("a", "f0"), ("b", "f1"))
    ]
    tables = computed(specs, ("b",))
    twin = stored_twin(tables)
    features = make_features(specs, 5, max_length=4, weighted=True)
    found, expected = tables.sequences(features), twin.sequences(features)
    assert list(found) == list(expected)
    for key, jagged in expected.items():
        torch.testing.assert_close(found[key].values(), jagged.values(), **ROUNDING)
        assert torch.equal(found[key].lengths(), jagged.lengths())
        assert torch.equal(found[key].weights(), jagged.weights())
    assert tables(features).values().shape == (5, 0)


def test_each_distinct_id_of_a_table_is_computed_once(mixed_specs):
    tables = computed(mixed_specs, ("a",))
    features = KeyedJaggedTensor(
        keys=["f0", "f1", "f2", "f3"],
        values=torch.tensor([5, 1, 5, 5, 2, 1, 0, 0, 0, 0, 0, 0]),
        lengths=torch.ones(12, dtype=torch.int32),
    )
    tables(features)
    ((table, ids),) = tables.sources["a"].asked
    assert (table, ids.tolist()) == ("a", [1, 2, 5])


def test_sources_that_share_an_array_are_named_once_in_the_state(mixed_specs):
    names = [s.name for s in mixed_specs if s.embedding_dim == 4]
    rest = [s for s in mixed_specs if s.name not in names]
    tables = ComputedTables(
        mixed_specs,
        sources={"shared": Stored(num_embeddings=6, embedding_dim=4)},
        source_of=dict.fromkeys(names, "shared"),
        planned=full_tables(rest),
    )
    assert "embedding_bags.shared.weight" in tables.state_dict()
    assert sum(t.nbytes for t in tables.state_dict().values()) == tables.storage().train_bytes


def test_a_state_of_another_shape_is_refused_by_name(mixed_specs):
    tables = computed(mixed_specs, ("a",))
    state = tables.state_dict()
    state["embedding_bags.a.weight"] = torch.zeros(2, 4)
    with pytest.raises(RuntimeError, match=r"embedding_bags\.a\.weight: the tables need \(6, 4\)"):
        tables.load_state_dict(state)


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c", "wa", "wb")], ids=str)
def test_missing_and_unexpected_names_are_reported(mixed_specs, names):
    tables = computed(mixed_specs, names)
    state = tables.state_dict()
    del state["embedding_bags.a.weight"]
    state["embedding_bags.z.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"embedding_bags\.a\.weight") as caught:
        tables.load_state_dict(state)
    assert "embedding_bags.z.weight" in str(caught.value)


def test_a_state_loads_inside_another_module(mixed_specs, make_features):
    one, two = (nn.Sequential(computed(mixed_specs, ("a", "wb"), seed=s)) for s in (1, 2))
    two.load_state_dict(one.state_dict())
    features = make_features(mixed_specs, 4)
    assert torch.equal(one[0](features).values(), two[0](features).values())


def test_tables_move_with_their_parts(mixed_specs):
    tables = computed(mixed_specs, ("a",), optimizer=SGD).to("meta")
    assert {t.device.type for t in tables.state_dict().values()} == {"meta"}


def test_deferred_updates_are_one_update(mixed_specs, make_features):
    tables = computed(mixed_specs, ("a",), optimizer=SGD)
    twin = computed(mixed_specs, ("a",), optimizer=SGD)
    features = make_features(mixed_specs, 6)
    for each, parts in ((tables, 2), (twin, 1)):
        for part in range(parts):
            each.defer_updates(part < parts - 1)
            each(features).values().sum().mul(1 / parts).backward()
    state = twin.state_dict()
    for key, tensor in tables.state_dict().items():
        torch.testing.assert_close(tensor, state[key], **ROUNDING)
    for mine, its in zip(tables.dense_parameters(), twin.dense_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, **ROUNDING)


@pytest.mark.parametrize("policy", ["oov", "hash", "clamp"])
def test_ids_out_of_range_are_replaced_as_in_stored_tables(mixed_specs, make_features, policy):
    drawn = make_features([s for s in mixed_specs if "w" not in s.name], 6)
    values = drawn.values().clone()
    values[0], values[1] = 1000, -3
    only = [s for s in mixed_specs if s.name in ("a", "b")]
    tables = computed(only, ("a", "b"), bounds=policy)
    twin = full_tables(only, bounds=policy)
    twin.load_state_dict(tables.state_dict())
    features = KeyedJaggedTensor(keys=drawn.keys(), values=values, lengths=drawn.lengths())
    assert torch.equal(tables(features).values(), twin(features).values())
    assert tables.out_of_range_counts() == twin.out_of_range_counts()
    assert sum(tables.out_of_range_counts().values()) == 2


def test_the_learning_rate_is_that_of_the_stored_tables(mixed_specs, make_features):
    tables = computed(mixed_specs, ("a",), optimizer=SGD)
    tables.set_learning_rate(0.0)
    before = tables.state_dict()["embedding_bags.b.weight"].clone()
    tables(make_features(mixed_specs, 4)).values().sum().backward()
    assert torch.equal(tables.state_dict()["embedding_bags.b.weight"], before)
    with pytest.raises(ValueError, match="must not be negative"):
        tables.set_learning_rate(-1.0)
    with pytest.raises(ValueError, match="no table optimizer"):
        computed(mixed_specs, ("a",)).set_learning_rate(0.1)


def test_unknown_keys_and_ids_are_refused(mixed_specs):
    tables = computed(mixed_specs, ("a",))
    with pytest.raises(ValueError, match="there is no key 'f9'"):
        tables.rows("f9", torch.tensor([0]))
    with pytest.raises(ValueError, match=r"table 'a': id 6 is not in \[0, 6\)"):
        tables.rows("f0@a", torch.tensor([0, 6]))


def test_every_table_is_computed_or_stored_and_not_both(specs):
    with pytest.raises(ValueError, match="have no source, but planned has"):
        ComputedTables(specs, sources={}, source_of={}, planned=full_tables(specs[:1]))
    with pytest.raises(ValueError, match=r"tables read sources \['x'\]"):
        ComputedTables(specs, sources={}, source_of={"t0": "x"}, planned=full_tables(specs[1:]))
