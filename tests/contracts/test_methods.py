"""What every method promises, for every YAML of conf/embedding."""

import json
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.computed import ComputedTables
from recemb.tables.initial import Initial
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "embedding"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
RATIOS = [0.5, 0.25, 0.1, 0.05]
# Sums of a few float32 products in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
SPECS = [
    TableSpec(name="large", num_embeddings=5000, embedding_dim=16, feature_names=("f0",)),
    TableSpec(
        name="middle",
        num_embeddings=700,
        embedding_dim=16,
        feature_names=("f1", "f2"),
        pooling="mean",
    ),
    TableSpec(name="tiny", num_embeddings=7, embedding_dim=16, feature_names=("f3",)),
    TableSpec(name="large_weight", num_embeddings=5000, embedding_dim=1, feature_names=("f0",)),
]
SEQUENCES = [
    TableSpec(
        name="items",
        num_embeddings=900,
        embedding_dim=16,
        feature_names=("f0",),
        pooling="none",
    )
]
STATS = {
    f: torch.randint(0, 1000, (s.num_embeddings,), generator=torch.Generator().manual_seed(3))
    for s in [*SPECS, *SEQUENCES]
    for f in s.feature_names
}
STATS["f0"] = torch.arange(5000).flip(0)


def class_of(name):
    return get_class(OmegaConf.load(FOLDER / f"{name}.yaml")["_target_"])


def method_of(name):
    return instantiate(OmegaConf.load(FOLDER / f"{name}.yaml"))


def feasible_budget(method, specs=SPECS):
    """Return the tightest of the ratios that the method reaches, None if it reaches none."""
    for ratio in reversed(RATIOS):
        budget = Budget(ratio=ratio)
        if method.plan(specs, stats_of(specs), budget).is_feasible:
            return budget
    return None


def stats_of(specs):
    return {f: STATS[f][: s.num_embeddings] for s in specs for f in s.feature_names}


def build(name, specs=SPECS, **changes):
    method = method_of(name)
    named = {"optimizer": TableOptimizer(), "seed": 1, "device": torch.device("cpu"), **changes}
    return method.build(specs, stats_of(specs), feasible_budget(method, specs), **named)


def draw(specs, *, seed=0, max_length=None, weighted=False, batch_size=6):
    generator = torch.Generator().manual_seed(seed)
    rows = {f: s.num_embeddings for s in specs for f in s.feature_names}
    lengths = torch.ones(len(rows), batch_size, dtype=torch.int32)
    if max_length is not None:
        lengths = torch.randint(0, max_length + 1, lengths.shape, generator=generator).int()
    values = torch.cat(
        [
            torch.randint(0, n, (int(num),), generator=generator)
            for n, num in zip(rows.values(), lengths.sum(1), strict=True)
        ]
    )
    weights = torch.randn(values.numel(), generator=generator) if weighted else None
    return KeyedJaggedTensor(
        keys=list(rows), values=values, lengths=lengths.view(-1), weights=weights
    )


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", NAMES)
def test_a_plan_keeps_its_budget_or_says_that_it_cannot(name, ratio):
    method, budget = method_of(name), Budget(ratio=ratio)
    plan = method.plan(SPECS, STATS, budget)
    assert plan.is_feasible == (plan.storage.serve_bytes <= budget.allowed_bytes(SPECS))
    if not plan.is_feasible:
        with pytest.raises(ValueError, match="the least is"):
            build_with(method, budget)


def build_with(method, budget):
    return method.build(SPECS, STATS, budget, optimizer=None, seed=1, device=torch.device("cpu"))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", NAMES)
def test_the_plan_s_bytes_are_those_of_the_tables(name, ratio):
    method, budget = method_of(name), Budget(ratio=ratio)
    plan = method.plan(SPECS, STATS, budget)
    if plan.is_feasible:
        tables = build_with(method, budget)
        assert tables.storage().serve == plan.storage.serve
        stored = sum(t.nbytes for t in tables.freeze().state_dict().values())
        assert stored == plan.storage.serve_bytes


@pytest.mark.parametrize("name", NAMES)
def test_tables_without_memory_say_the_bytes_of_those_that_have_some(name):
    assert build(name, device=torch.device("meta")).storage() == build(name).storage()


@pytest.mark.parametrize("name", NAMES)
def test_training_bytes_are_those_of_the_state(name):
    tables = build(name)
    assert tables.storage().train_bytes == sum(t.nbytes for t in tables.state_dict().values())


@pytest.mark.parametrize(
    "inputs", [{}, {"max_length": 3}, {"max_length": 3, "weighted": True}], ids=str
)
@pytest.mark.parametrize("name", NAMES)
def test_forward_pools_the_rows(name, inputs):
    tables = build(name).train(class_of(name).trains_as_served)
    features = draw(SPECS, **inputs)
    found = tables(features).to_dict()
    for key, (spec, feature) in tables.outputs.items():
        bags = features[feature]
        vectors = tables.rows(key, bags.values())
        if bags.weights_or_none() is not None:
            vectors = vectors * bags.weights().unsqueeze(1)
        bag_of = torch.arange(6).repeat_interleave(bags.lengths())
        if spec.pooling == "mean":
            vectors = vectors / bags.lengths()[bag_of].unsqueeze(1)
        expected = torch.zeros(6, vectors.shape[1]).index_add(0, bag_of, vectors)
        torch.testing.assert_close(found[key], expected, **ROUNDING)


@pytest.mark.parametrize("name", NAMES)
def test_sequences_are_the_rows(name):
    tables = build(name, SEQUENCES).train(class_of(name).trains_as_served)
    features = draw(SEQUENCES, max_length=4)
    found = tables.sequences(features)["f0"]
    torch.testing.assert_close(found.values(), tables.rows("f0", features.values()), **ROUNDING)


# tests/tables/test_grid.py holds the step of integers against the float32 step.
@pytest.mark.parametrize("name", [n for n in NAMES if class_of(n).has_gradients])
def test_training_follows_the_dense_gradient(name):
    fused = build(name, optimizer=TableOptimizer(kind="sgd", learning_rate=0.5))
    dense = build(name, optimizer=None)
    features = draw(SPECS, max_length=3)
    grad = torch.randn(6, sum(fused.embedding_dims.values()))
    for tables in (fused, dense):
        tables(features).values().backward(grad)
    with torch.no_grad():
        for parameter in dense.dense_parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
        for parameter in fused.dense_parameters():
            # Codebooks of DPQ follow a term of the loss, which these vectors are not.
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
    state, expected = fused.state_dict(), dense.state_dict()
    for key in expected:
        torch.testing.assert_close(state[key], expected[key], **ROUNDING)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_gives_the_same_vectors_and_the_same_next_step(name):
    one, two = build(name), build(name, seed=2)
    train(one, seed=0)
    two.load_state_dict(one.state_dict())
    features = draw(SPECS, max_length=3)
    assert torch.equal(one(features).values(), two(features).values())
    for tables in (one, two):
        train(tables, seed=1)
    for key, tensor in one.state_dict().items():
        assert torch.equal(two.state_dict()[key], tensor)


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_holds_that_of_all_tables_within(name):
    tables = build(name)
    held = [part.identity() for part in tables.modules() if isinstance(part, Tables)]
    found = list(values_in(tables.identity()))
    assert all(identity in found for identity in held)


def values_in(value):
    yield value
    entries = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        for entry in entries:
            yield from values_in(entry)


def train(tables, *, seed):
    vectors = tables(draw(SPECS, seed=seed, max_length=3)).values()
    vectors.backward(torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("name", NAMES)
def test_the_frozen_form_gives_the_same_bits(name):
    tables = build(name)
    train(tables, seed=0)
    features = draw(SPECS, max_length=3)
    frozen = tables.freeze()
    assert not frozen.training
    tables.train(class_of(name).trains_as_served)
    assert torch.equal(frozen(features).values(), tables(features).values())
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("name", [n for n in NAMES if class_of(n).starts_as_full])
def test_initial_vectors_have_the_full_table_s_deviation(name):
    tables = build(name)
    # Ids that share a vector are one draw, not many.
    vectors = torch.unique(tables.rows("f0@large", torch.arange(5000)).detach(), dim=0)
    target = Initial.dlrm(5000).std
    assert abs(float(vectors.std()) / target - 1) < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights_and_nothing_else_does(name):
    one, same, other = build(name), build(name), build(name, seed=2)
    assert torch.equal(one.rows("f3", torch.arange(7)), same.rows("f3", torch.arange(7)))
    assert not torch.equal(one.rows("f3", torch.arange(7)), other.rows("f3", torch.arange(7)))


@pytest.mark.parametrize("name", NAMES)
def test_an_id_out_of_range_is_refused_by_name(name):
    features = draw(SPECS)
    features.values()[0] = 5000
    with pytest.raises(ValueError, match=r"'large(_weight)?'.*'f0' has id 5000"):
        build(name)(features)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_the_batch_gives_zeros(name):
    features = draw(SPECS, max_length=0)
    assert not build(name)(features).values().any()


@pytest.mark.parametrize("name", NAMES)
def test_the_yaml_is_the_signature(name):
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith(f"# recemb train embedding={name}")
    assert set(config) > {"_target_"}


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_serialises(name):
    tables = build(name)
    planned = getattr(tables, "planned", tables)
    if planned is not None:
        again = type(planned.plan).from_json(planned.plan.to_json())
        assert again == planned.plan
    if isinstance(tables, ComputedTables):
        description = tables.description()
        assert json.loads(json.dumps(description)) == description
        for source_name, source in tables.sources.items():
            entry = description["sources"][source_name]
            again = type(source)(**entry["settings"])
            assert again.form == entry["form"]
            shapes = {part: tensor.shape for part, tensor in source.parts()}
            assert {part: tensor.shape for part, tensor in again.parts()} == shapes
