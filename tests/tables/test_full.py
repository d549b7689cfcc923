"""Full tables: the lookup, and what the class promises around it."""

import copy
import dataclasses

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.full import full_tables
from recemb.tables.optimizer import KINDS, TableOptimizer
from recemb.tables.reference import ReferenceTables
from recemb.tables.spec import TableSpec

# Sums of at most some twenty float32 products of order one.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}

SPEC = TableSpec(name="item", num_embeddings=5, embedding_dim=4, feature_names=("brand",))


def weights_of(tables):
    return {
        spec.name: tables.state_dict()[f"embedding_bags.{spec.name}.weight"]
        for spec in tables.specs
    }


def train(tables, batches):
    for features in batches:
        tables(features).values().square().sum().backward()


def brands(*ids):
    return KeyedJaggedTensor(
        keys=["brand"], values=torch.tensor(ids), lengths=torch.ones(len(ids), dtype=torch.int32)
    )


@pytest.mark.parametrize("optimizer", [None, TableOptimizer()])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("max_length", "weighted"), [(None, False), (3, False), (3, True)])
def test_output_equals_the_reference(
    mixed_specs, make_features, optimizer, dtype, max_length, weighted
):
    tables = full_tables(mixed_specs, optimizer=optimizer, seed=3)
    features = make_features(mixed_specs, 7, max_length=max_length, weighted=weighted, dtype=dtype)
    reference = ReferenceTables(mixed_specs, weights_of(tables), TableOptimizer())
    output = tables(features)
    assert output.keys() == ["f0@a", "f1@a", "f2@b", "f3", "f0@wa", "f1@wa", "f2@wb"]
    assert output.length_per_key() == [4, 4, 8, 4, 1, 1, 1]
    assert output.values().is_contiguous()
    torch.testing.assert_close(output.values(), reference.pooled(features), **ROUNDING)
    with torch.no_grad():
        torch.testing.assert_close(tables(features).values(), output.values(), rtol=0, atol=0)


def test_output_does_not_depend_on_the_order_of_the_features(mixed_specs, make_features):
    tables = full_tables(mixed_specs)
    features = make_features(mixed_specs, 6, max_length=3, weighted=True)
    permuted = features.permute([2, 0, 3, 1])
    assert permuted.keys() != features.keys()
    assert torch.equal(tables(permuted).values(), tables(features).values())


def test_features_of_nobody_are_ignored(specs, make_features):
    few = full_tables(specs[1:2])
    features = make_features(specs, 6)
    expected = few.rows("f1", features["f1"].values())
    assert torch.equal(few(features).values(), expected)


def test_a_missing_feature_is_named(specs, make_features):
    features = make_features(specs[:2], 3)
    with pytest.raises(ValueError, match=r"features \['f2'\] are looked up but not in the batch"):
        full_tables(specs)(features)


@pytest.mark.parametrize("weighted", [False, True])
def test_an_empty_batch_gives_an_empty_output(specs, make_features, weighted):
    tables = full_tables(specs, optimizer=TableOptimizer())
    values = tables(make_features(specs, 0, max_length=3, weighted=weighted)).values()
    assert values.shape == (0, 12)
    values.sum().backward()


def test_a_batch_of_empty_bags_gives_zeros_and_trains_nothing(specs):
    tables = full_tables(specs, optimizer=TableOptimizer(kind="adam"))
    before = {k: v.clone() for k, v in weights_of(tables).items()}
    features = KeyedJaggedTensor(
        keys=["f0", "f1", "f2"],
        values=torch.empty(0, dtype=torch.int64),
        lengths=torch.zeros(6, dtype=torch.int32),
    )
    values = tables(features).values()
    assert torch.equal(values, torch.zeros(2, 12))
    values.sum().backward()
    assert all(torch.equal(weights_of(tables)[k], before[k]) for k in before)


def test_sequences_are_the_rows_of_every_id():
    spec = TableSpec(
        name="item", num_embeddings=5, embedding_dim=3, feature_names=("h", "t"), pooling="none"
    )
    tables = full_tables([spec], optimizer=TableOptimizer())
    features = KeyedJaggedTensor(
        keys=["t", "h"],
        values=torch.tensor([4, 4, 0, 1, 2]),
        lengths=torch.tensor([1, 1, 0, 3], dtype=torch.int32),
    )
    found = tables.sequences(features)
    assert list(found) == ["h", "t"] == list(tables.sequence_keys)
    assert tables.keys == ()
    assert torch.equal(found["h"].values(), tables.rows("h", torch.tensor([0, 1, 2])))
    assert found["h"].lengths().tolist() == [0, 3]
    assert torch.equal(found["t"].values(), tables.rows("t", torch.tensor([4, 4])))


def test_sequences_of_no_examples_are_empty():
    spec = TableSpec(
        name="item", num_embeddings=5, embedding_dim=3, feature_names=("h", "t"), pooling="none"
    )
    tables = full_tables([spec], optimizer=TableOptimizer())
    nothing = torch.empty(0, dtype=torch.int64)
    features = KeyedJaggedTensor(keys=["t", "h"], values=nothing, lengths=nothing, stride=0)
    for found in tables.sequences(features).values():
        assert found.values().shape == (0, 3)
        assert found.lengths().tolist() == []


def test_sequences_train_like_dense_sgd():
    spec = TableSpec(
        name="item", num_embeddings=5, embedding_dim=3, feature_names=("h", "t"), pooling="none"
    )
    tables = full_tables([spec], optimizer=TableOptimizer(kind="sgd", learning_rate=0.5))
    before = weights_of(tables)["item"].clone()
    features = KeyedJaggedTensor(
        keys=["h", "t"],
        values=torch.tensor([0, 1, 1, 4, 1]),
        lengths=torch.tensor([0, 3, 1, 1], dtype=torch.int32),
    )
    found = tables.sequences(features)
    (2 * found["h"].values().sum() + found["t"].values().sum()).backward()
    counts = torch.tensor([2.0, 2 + 2 + 1, 0, 0, 1]).unsqueeze(1)
    torch.testing.assert_close(weights_of(tables)["item"], before - 0.5 * counts, **ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_bit_by_bit_after_a_state_dict_round_trip(
    mixed_specs, make_features, kind
):
    make = lambda: full_tables(mixed_specs, optimizer=TableOptimizer(kind=kind))  # noqa: E731
    batches = [make_features(mixed_specs, 9, seed=s, max_length=2) for s in range(4)]
    undisturbed, first, second = make(), make(), make()
    train(undisturbed, batches)
    train(first, batches[:2])
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    train(second, batches[2:])
    expected = undisturbed.state_dict()
    assert expected.keys() == second.state_dict().keys()
    assert all(torch.equal(second.state_dict()[k], v) for k, v in expected.items())


def test_a_state_of_another_shape_is_refused_by_name(specs):
    other = [TableSpec(**{**vars(s), "num_embeddings": 3}) for s in specs]
    with pytest.raises(RuntimeError, match=r"embedding_bags.t1.weight: the table needs \(8, 4\)"):
        full_tables(specs).load_state_dict(full_tables(other).state_dict())


def test_a_missing_and_an_unexpected_tensor_are_named(specs):
    state = full_tables(specs, optimizer=TableOptimizer()).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*optimizer.t0.sum"):
        full_tables(specs).load_state_dict(state)
    del state["optimizer.t0.sum"]
    with pytest.raises(RuntimeError, match=r"Missing key.*optimizer.t0.sum"):
        full_tables(specs, optimizer=TableOptimizer()).load_state_dict(state)


def test_tables_nest_in_another_module(specs, make_features):
    outer = torch.nn.Sequential(full_tables(specs, optimizer=TableOptimizer()))
    names = set(outer.state_dict())
    assert "0.embedding_bags.t0.weight" in names
    other = torch.nn.Sequential(full_tables(specs, optimizer=TableOptimizer(), seed=9))
    other.load_state_dict(outer.state_dict())
    features = make_features(specs, 5)
    assert torch.equal(other[0](features).values(), outer[0](features).values())


@pytest.mark.parametrize("kind", KINDS)
def test_storage_counts_the_bytes_of_the_state_dict(mixed_specs, kind):
    tables = full_tables(mixed_specs, optimizer=TableOptimizer(kind=kind))
    state, storage = tables.state_dict(), tables.storage()
    weights = sum(t.nbytes for name, t in state.items() if name.startswith("embedding_bags."))
    assert storage.serve_bytes == weights == storage.full_bytes
    assert storage.train_bytes == sum(t.nbytes for t in state.values())


def test_meta_tables_allocate_nothing_and_know_their_bytes():
    spec = TableSpec(name="t", num_embeddings=10**9, embedding_dim=64, feature_names=("f",))
    tables = full_tables([spec], optimizer=TableOptimizer(), device="meta")
    assert tables.storage().train_bytes == 10**9 * (64 + 1) * 4


def test_frozen_tables_give_the_same_vectors_without_state_or_gradients(mixed_specs, make_features):
    tables = full_tables(mixed_specs, optimizer=TableOptimizer(kind="adam"))
    features = make_features(mixed_specs, 5, max_length=3)
    frozen = tables.freeze()
    output = frozen(features).values()
    assert torch.equal(output, tables(features).values())
    assert not output.requires_grad
    assert not frozen.training
    assert set(frozen.state_dict()) == {k for k in tables.state_dict() if "weight" in k}
    assert frozen.storage().train_bytes == tables.storage().serve_bytes


def test_initial_weights_are_uniform_within_the_bound():
    spec = TableSpec(name="t", num_embeddings=400, embedding_dim=16, feature_names=("f",))
    weight = weights_of(full_tables([spec], seed=1))["t"]
    bound = 1 / 400**0.5
    assert weight.abs().max() <= bound
    # 6400 draws: the mean's standard deviation is bound / sqrt(3 * 6400) = 0.0072 * bound.
    assert abs(float(weight.mean())) < 0.04 * bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_initial_weights_are_normal_with_the_asked_deviation():
    spec = TableSpec(name="t", num_embeddings=400, embedding_dim=16, feature_names=("f",))
    weight = weights_of(full_tables([spec], init_std=0.02))["t"]
    assert float(weight.std()) == pytest.approx(0.02, rel=0.05)


def test_the_seed_decides_the_initial_weights(specs):
    first, same, other = (weights_of(full_tables(specs, seed=s))["t0"] for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_rows_names_an_unknown_key_and_an_id_out_of_range():
    tables = full_tables([SPEC])
    with pytest.raises(ValueError, match="no key 'colour'"):
        tables.rows("colour", torch.tensor([0]))
    with pytest.raises(ValueError, match=r"table 'item': id 5 is not in \[0, 5\)"):
        tables.rows("brand", torch.tensor([0, 5]))


def test_a_learning_rate_of_zero_trains_nothing(specs, make_features):
    tables = full_tables(specs, optimizer=TableOptimizer(kind="sgd"))
    before = weights_of(tables)["t0"].clone()
    tables.set_learning_rate(0.0)
    train(tables, [make_features(specs, 5)])
    assert torch.equal(weights_of(tables)["t0"], before)


def test_setting_the_learning_rate_of_plain_parameters_is_refused(specs):
    with pytest.raises(ValueError, match="no table optimizer"):
        full_tables(specs).set_learning_rate(0.1)


def test_a_backward_pass_in_eval_mode_is_refused(specs, make_features):
    tables = full_tables(specs, optimizer=TableOptimizer()).eval()
    with pytest.raises(RuntimeError, match="eval mode"):
        train(tables, [make_features(specs, 5)])


def test_tables_that_update_themselves_show_no_parameters(specs):
    fused = full_tables(specs, optimizer=TableOptimizer())
    assert list(fused.parameters()) == []
    assert fused.dense_parameters() == []
    assert len(full_tables(specs).dense_parameters()) == 1


@pytest.mark.parametrize("optimizer", [None, TableOptimizer(kind="sgd", learning_rate=1.0)])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_weights_of_ids_get_their_gradient_from_the_rows_before_the_update(
    specs, make_features, optimizer, pooling
):
    specs = [dataclasses.replace(spec, pooling=pooling) for spec in specs]
    features = make_features(specs, 5, max_length=3, weighted=True)
    weights = features.weights().requires_grad_()
    tables = full_tables(specs, optimizer=optimizer)
    grad = torch.randn(5, 12)
    expected = []
    for f, (key, bags) in enumerate(features.to_dict().items()):
        bag_of = torch.arange(5).repeat_interleave(bags.lengths())
        rows = tables.rows(key, bags.values()).detach()
        dots = (rows * grad[bag_of, 4 * f : 4 * f + 4]).sum(dim=1)
        expected.append(dots / (bags.lengths()[bag_of] if pooling == "mean" else 1))
    tables(features).values().backward(grad)
    torch.testing.assert_close(weights.grad, torch.cat(expected), **ROUNDING)


def test_an_unknown_backend_is_refused(specs):
    with pytest.raises(
        ValueError, match="backend must be one of auto, torch, fbgemm, triton, got 'cuda'"
    ):
        full_tables(specs, backend="cuda")


def test_unfinished_accumulation_is_not_saved_in_silence(specs, make_features):
    tables = full_tables(specs, optimizer=TableOptimizer())
    tables.defer_updates(True)
    train(tables, [make_features(specs, 5)])
    with pytest.raises(RuntimeError, match="micro-batches"):
        tables.state_dict()


def test_a_gradient_in_bfloat16_is_accumulated_in_float32(specs):
    rows, count = 7, 1000
    tables = full_tables(specs[:1], optimizer=TableOptimizer(kind="sgd", learning_rate=1.0))
    before = weights_of(tables)["t0"].clone()
    features = KeyedJaggedTensor(
        keys=["f0"], values=torch.zeros(count, dtype=torch.int64), lengths=torch.ones(count).int()
    )
    tables(features).values().bfloat16().backward(torch.ones(count, 4).bfloat16())
    # A sum in bfloat16 would stop at 256, where adding one no longer changes it.
    moved = torch.zeros(rows, 4)
    moved[0] = count
    torch.testing.assert_close(weights_of(tables)["t0"], before - moved, **ROUNDING)


def test_fused_tables_can_be_copied(specs, make_features):
    tables = full_tables(specs, optimizer=TableOptimizer())
    twin = copy.deepcopy(tables)
    features = make_features(specs, 5)
    train(tables, [features])
    assert not torch.equal(weights_of(twin)["t0"], weights_of(tables)["t0"])
    train(twin, [features])
    assert torch.equal(weights_of(twin)["t0"], weights_of(tables)["t0"])
