"""The fused update against the dense reference and torch.optim."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.full import full_tables
from recemb.tables.optimizer import KINDS, TableOptimizer
from recemb.tables.reference import ReferenceTables
from recemb.tables.spec import TableSpec

# A few steps in float32 against float64; Adam's first steps divide small numbers by their roots.
ROUNDING = {"rtol": 2e-4, "atol": 2e-5}
# The same formula in the same precision, in another order of sums.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}


def weights_of(tables):
    state = tables.state_dict()
    return {spec.name: state[f"embedding_bags.{spec.name}.weight"] for spec in tables.specs}


def steps(tables, batches):
    """Train on (features, gradient) pairs, an update each."""
    for features, grad in batches:
        tables(features).values().backward(grad)


def batches_for(specs, make_features, *, num_steps=3, **options):
    generator = torch.Generator().manual_seed(5)
    width = sum(s.embedding_dim * len(s.feature_names) for s in specs)
    return [
        (make_features(specs, 8, seed=k, **options), torch.randn(8, width, generator=generator))
        for k in range(num_steps)
    ]


def reference_for(tables, optimizer):
    weights = {name: w.double() for name, w in weights_of(tables).items()}
    return ReferenceTables(tables.specs, weights, optimizer)


def assert_equals(tables, reference, tolerance=ROUNDING):
    state = tables.state_dict()
    for name, table in reference.tables.items():
        torch.testing.assert_close(
            state[f"embedding_bags.{name}.weight"].double(), table.weight, **tolerance
        )
        for part in ("sum", "exp_avg", "exp_avg_sq"):
            if f"optimizer.{name}.{part}" in state:
                expected = getattr(table, part).view(state[f"optimizer.{name}.{part}"].shape)
                torch.testing.assert_close(
                    state[f"optimizer.{name}.{part}"].double(), expected, **tolerance
                )
        if f"optimizer.{name}.step" in state:
            assert int(state[f"optimizer.{name}.step"]) == table.step


@pytest.mark.parametrize("rows", ["touched", "all"])
@pytest.mark.parametrize("decay", [(0.0, "l2"), (0.1, "l2"), (0.1, "decoupled")])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [{}, {"max_length": 4}, {"max_length": 4, "weighted": True}])
def test_every_update_equals_the_reference(mixed_specs, make_features, kind, decay, rows, inputs):
    optimizer = TableOptimizer(
        kind=kind,
        learning_rate=0.05,
        eps=1e-4,
        weight_decay=decay[0],
        weight_decay_mode=decay[1],
        initial_accumulator=0.1,
        rows=rows,
    )
    tables = full_tables(mixed_specs, optimizer=optimizer)
    reference = reference_for(tables, optimizer)
    batches = batches_for(mixed_specs, make_features, **inputs)
    steps(tables, batches)
    for features, grad in batches:
        reference.step([(features, grad.double())])
    assert_equals(tables, reference)


@st.composite
def ugly_inputs(draw):
    """Tables of odd widths and sizes, and two batches of any bags, some empty, some huge."""
    num_tables = draw(st.integers(1, 4))
    specs = [
        TableSpec(
            name=f"t{i}",
            num_embeddings=draw(st.sampled_from([1, 2, 5, 100])),
            embedding_dim=draw(st.sampled_from([1, 3, 4, 8])),
            feature_names=tuple(f"f{i}{j}" for j in range(draw(st.integers(1, 2)))),
            pooling=draw(st.sampled_from(["sum", "mean"])),
        )
        for i in range(num_tables)
    ]
    batch_size = draw(st.sampled_from([1, 2, 7]))
    lengths = st.sampled_from([0, 1, 1, 2, 30])
    weighted, wide = draw(st.booleans()), draw(st.booleans())
    batches = []
    for _ in range(2):
        keys = draw(
            st.permutations([(f, s.num_embeddings) for s in specs for f in s.feature_names])
        )
        sizes = [draw(st.lists(lengths, min_size=batch_size, max_size=batch_size)) for _ in keys]
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        values = torch.cat(
            [
                torch.randint(0, rows, (sum(its),), generator=generator)
                for (_, rows), its in zip(keys, sizes, strict=True)
            ]
        )
        features = KeyedJaggedTensor(
            keys=[key for key, _ in keys],
            values=values if wide else values.int(),
            lengths=torch.tensor(list(itertools.chain(*sizes)), dtype=torch.int32),
            weights=torch.randn(values.numel(), generator=generator) if weighted else None,
        )
        width = sum(s.embedding_dim * len(s.feature_names) for s in specs)
        batches.append((features, torch.randn(batch_size, width, generator=generator)))
    return specs, batches


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    inputs=ugly_inputs(), kind=st.sampled_from(KINDS), backend=st.sampled_from(["auto", "torch"])
)
def test_any_bags_look_up_and_train_like_the_reference(inputs, kind, backend):
    specs, batches = inputs
    optimizer = TableOptimizer(kind=kind, learning_rate=0.05, eps=1e-3)
    tables = full_tables(specs, optimizer=optimizer, backend=backend)
    reference = reference_for(tables, optimizer)
    for features, grad in batches:
        output = tables(features).values()
        torch.testing.assert_close(output.double(), reference.pooled(features), **ROUNDING)
        output.backward(grad)
        reference.step([(features, grad.double())])
    assert_equals(tables, reference)


DENSE = {
    "sgd": (TableOptimizer(kind="sgd", learning_rate=0.1), torch.optim.SGD, {"lr": 0.1}),
    "sgd_l2": (
        TableOptimizer(kind="sgd", learning_rate=0.1, weight_decay=0.2),
        torch.optim.SGD,
        {"lr": 0.1, "weight_decay": 0.2},
    ),
    "adagrad": (
        TableOptimizer(kind="adagrad", learning_rate=0.1, eps=1e-6, initial_accumulator=0.3),
        torch.optim.Adagrad,
        {"lr": 0.1, "eps": 1e-6, "initial_accumulator_value": 0.3},
    ),
    "adagrad_l2": (
        TableOptimizer(kind="adagrad", learning_rate=0.1, eps=1e-6, weight_decay=0.2),
        torch.optim.Adagrad,
        {"lr": 0.1, "eps": 1e-6, "weight_decay": 0.2},
    ),
    "adam": (
        TableOptimizer(kind="adam", learning_rate=0.1, eps=1e-6, beta1=0.8, beta2=0.9),
        torch.optim.Adam,
        {"lr": 0.1, "eps": 1e-6, "betas": (0.8, 0.9)},
    ),
    "adam_l2": (
        TableOptimizer(kind="adam", learning_rate=0.1, eps=1e-6, weight_decay=0.2),
        torch.optim.Adam,
        {"lr": 0.1, "eps": 1e-6, "weight_decay": 0.2},
    ),
    "adamw": (
        TableOptimizer(
            kind="adam",
            learning_rate=0.1,
            eps=1e-6,
            weight_decay=0.2,
            weight_decay_mode="decoupled",
        ),
        torch.optim.AdamW,
        {"lr": 0.1, "eps": 1e-6, "weight_decay": 0.2},
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_visiting_all_rows_equals_dense_torch_optim(mixed_specs, make_features, name):
    ours, make, options = DENSE[name]
    fused = full_tables(mixed_specs, optimizer=TableOptimizer(**{**vars(ours), "rows": "all"}))
    plain = full_tables(mixed_specs)
    optimizer = make(plain.parameters(), **options)
    for features, grad in batches_for(mixed_specs, make_features, num_steps=4, max_length=2):
        fused(features).values().backward(grad)
        optimizer.zero_grad()
        plain(features).values().backward(grad)
        optimizer.step()
    for table, weight in weights_of(plain).items():
        torch.testing.assert_close(weights_of(fused)[table], weight, **FLOAT32)


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_touched_rows_equal_dense_torch_optim_where_zero_gradients_change_nothing(
    specs, make_features, name
):
    ours, make, options = DENSE[name]
    fused, plain = full_tables(specs, optimizer=ours), full_tables(specs)
    optimizer = make(plain.parameters(), **options)
    for features, grad in batches_for(specs, make_features, num_steps=4, max_length=2):
        fused(features).values().backward(grad)
        optimizer.zero_grad()
        plain(features).values().backward(grad)
        optimizer.step()
    for table, weight in weights_of(plain).items():
        torch.testing.assert_close(weights_of(fused)[table], weight, **FLOAT32)


def test_lazy_adam_equals_sparse_adam_of_torch():
    # SparseAdam adds eps before the bias correction, we after it, so eps is made to vanish.
    spec = TableSpec(name="t", num_embeddings=20, embedding_dim=4, feature_names=("f",))
    ours = TableOptimizer(kind="adam", learning_rate=0.1, eps=1e-30)
    fused = full_tables([spec], optimizer=ours)
    bag = torch.nn.EmbeddingBag.from_pretrained(
        weights_of(fused)["t"].clone(), freeze=False, mode="sum", sparse=True
    )
    optimizer = torch.optim.SparseAdam(list(bag.parameters()), lr=0.1, eps=1e-30)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 20, (12,), generator=generator)
        grad = torch.randn(4, 4, generator=generator)
        features = KeyedJaggedTensor(keys=["f"], values=ids, lengths=torch.full((4,), 3))
        fused(features).values().backward(grad)
        optimizer.zero_grad()
        bag(ids.view(4, 3)).backward(grad)
        optimizer.step()
    torch.testing.assert_close(weights_of(fused)["t"], bag.weight.detach(), **FLOAT32)


def test_rowwise_equals_elementwise_for_tables_of_width_one(make_features):
    specs = [TableSpec(name="t", num_embeddings=9, embedding_dim=1, feature_names=("f",))]
    for row, element in (("rowwise_adagrad", "adagrad"), ("rowwise_adam", "adam")):
        one, other = (full_tables(specs, optimizer=TableOptimizer(kind=k)) for k in (row, element))
        for tables in (one, other):
            steps(tables, batches_for(specs, make_features, max_length=3))
        torch.testing.assert_close(weights_of(one)["t"], weights_of(other)["t"], **FLOAT32)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_deferred_micro_batches_equal_one_big_batch(mixed_specs, make_features, kind, backend):
    optimizer = TableOptimizer(kind=kind, eps=1e-3)
    tables = full_tables(mixed_specs, optimizer=optimizer, backend=backend)
    reference = reference_for(tables, optimizer)
    for weighted in (False, True):
        parts = batches_for(mixed_specs, make_features, max_length=3, weighted=weighted)
        for number, (features, grad) in enumerate(parts):
            tables.defer_updates(number < len(parts) - 1)
            tables(features).values().backward(grad)
        reference.step([(features, grad.double()) for features, grad in parts])
    assert_equals(tables, reference)


def test_nothing_changes_while_updates_are_deferred(mixed_specs, make_features):
    tables = full_tables(mixed_specs, optimizer=TableOptimizer())
    before = {name: weight.clone() for name, weight in weights_of(tables).items()}
    tables.defer_updates(True)
    steps(tables, batches_for(mixed_specs, make_features))
    for name, weight in before.items():
        key = next(key for key, (spec, _) in tables.outputs.items() if spec.name == name)
        assert torch.equal(tables.rows(key, torch.arange(len(weight))), weight)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_twice_gives_the_same_bits(mixed_specs, make_features, kind, backend):
    runs = []
    for _ in range(2):
        optimizer = TableOptimizer(kind=kind)
        tables = full_tables(mixed_specs, optimizer=optimizer, backend=backend)
        steps(tables, batches_for(mixed_specs, make_features, max_length=20))
        runs.append(tables.state_dict())
    assert all(torch.equal(runs[0][name], tensor) for name, tensor in runs[1].items())


def test_untouched_rows_keep_their_bits():
    spec = TableSpec(name="t", num_embeddings=50, embedding_dim=8, feature_names=("f",))
    optimizer = TableOptimizer(kind="adam", weight_decay=0.1)
    tables = full_tables([spec], optimizer=optimizer)
    before = weights_of(tables)["t"].clone()
    ids = torch.tensor([3, 7, 7, 49])
    features = KeyedJaggedTensor(keys=["f"], values=ids, lengths=torch.ones(4, dtype=torch.int32))
    tables(features).values().sum().backward()
    changed = (weights_of(tables)["t"] != before).any(dim=1).nonzero().view(-1)
    assert changed.tolist() == [3, 7, 49]


@pytest.mark.parametrize("rows", ["touched", "all"])
def test_updates_across_chunks_equal_the_formula(monkeypatch, make_features, mixed_specs, rows):
    # Chunks of one row reach every boundary.
    monkeypatch.setattr("recemb.tables.update._CHUNK_VALUES", 1)
    monkeypatch.setattr("recemb.tables.update._CHUNK_ROWS_ALL", 2)
    optimizer = TableOptimizer(kind="adagrad", eps=1e-3, rows=rows)
    tables = full_tables(mixed_specs, optimizer=optimizer, backend="torch")
    reference = reference_for(tables, optimizer)
    for features, grad in batches_for(mixed_specs, make_features, max_length=3, weighted=True):
        tables(features).values().backward(grad)
        reference.step([(features, grad.double())])
    assert_equals(tables, reference)
