"""FBGEMM's kernels against the torch backend and against FBGEMM's own module."""

import warnings

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    OptimType,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from recemb.tables.full import full_tables
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

# The same float32 formula with sums in another order, over a few steps.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}

FBGEMM_KINDS = ("sgd", "adagrad", "rowwise_adagrad")


@pytest.fixture
def wide_specs():
    """Two widths that FBGEMM serves, with a mean table and a table of two features."""
    return [
        TableSpec(name="a", num_embeddings=6, embedding_dim=4, feature_names=("f0", "f1")),
        TableSpec(
            name="b", num_embeddings=9, embedding_dim=8, feature_names=("f2",), pooling="mean"
        ),
        TableSpec(name="c", num_embeddings=5, embedding_dim=4, feature_names=("f3",)),
    ]


def train(tables, specs, make_features, *, first=0, last=4, **options):
    width = sum(s.embedding_dim * len(s.feature_names) for s in specs)
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        features = make_features(specs, 8, seed=step, **options)
        tables(features).values().backward(torch.randn(8, width, generator=generator))


def assert_close(state, expected):
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, **FLOAT32)


@pytest.mark.parametrize(("max_length", "weighted"), [(None, False), (4, False), (4, True)])
@pytest.mark.parametrize("kind", FBGEMM_KINDS)
def test_weights_and_state_equal_the_torch_backend(
    wide_specs, make_features, kind, max_length, weighted
):
    optimizer = TableOptimizer(kind=kind, eps=1e-3, initial_accumulator=0.2)
    both = [full_tables(wide_specs, optimizer=optimizer, backend=b) for b in ("fbgemm", "torch")]
    for tables in both:
        train(tables, wide_specs, make_features, max_length=max_length, weighted=weighted)
    assert_close(both[0].state_dict(), both[1].state_dict())


@pytest.mark.parametrize("kind", FBGEMM_KINDS)
def test_weights_and_state_equal_fbgemm_s_own_module(make_features, kind):
    specs = [
        TableSpec(name=f"t{i}", num_embeddings=6 + i, embedding_dim=8, feature_names=(f"f{i}",))
        for i in range(3)
    ]
    optimizer = TableOptimizer(kind=kind, learning_rate=0.1, eps=1e-3)
    tables = full_tables(specs, optimizer=optimizer, backend="fbgemm")
    theirs = SplitTableBatchedEmbeddingBagsCodegen(
        [(s.num_embeddings, 8, EmbeddingLocation.HOST, ComputeDevice.CPU) for s in specs],
        optimizer={
            "sgd": OptimType.EXACT_SGD,
            "adagrad": OptimType.EXACT_ADAGRAD,
            "rowwise_adagrad": OptimType.EXACT_ROWWISE_ADAGRAD,
        }[kind],
        learning_rate=0.1,
        eps=1e-3,
    )
    for spec, weight in zip(specs, theirs.split_embedding_weights(), strict=True):
        weight.copy_(tables.state_dict()[f"embedding_bags.{spec.name}.weight"])
    for step in range(4):
        features = make_features(specs, 8, seed=step, max_length=3)
        grad = torch.randn(8, 24, generator=torch.Generator().manual_seed(step))
        ours = tables(features).values()
        other = theirs(features.values(), features.offsets().long())
        torch.testing.assert_close(ours, other, **FLOAT32)
        ours.backward(grad)
        other.backward(grad)
    state = tables.state_dict()
    for spec, weight in zip(specs, theirs.split_embedding_weights(), strict=True):
        torch.testing.assert_close(state[f"embedding_bags.{spec.name}.weight"], weight, **FLOAT32)
    if kind != "sgd":
        for spec, parts in zip(specs, theirs.split_optimizer_states(), strict=True):
            expected = parts[0].view(state[f"optimizer.{spec.name}.sum"].shape)
            torch.testing.assert_close(state[f"optimizer.{spec.name}.sum"], expected, **FLOAT32)


@pytest.mark.parametrize(("before", "after"), [("torch", "fbgemm"), ("fbgemm", "torch")])
def test_a_run_saved_on_one_backend_goes_on_with_the_other(
    wide_specs, make_features, before, after
):
    optimizer = TableOptimizer(kind="rowwise_adagrad")
    one = full_tables(wide_specs, optimizer=optimizer, backend=before)
    two = full_tables(wide_specs, optimizer=optimizer, backend=after, seed=9)
    train(one, wide_specs, make_features, last=2)
    two.load_state_dict(one.state_dict())
    for tables in (one, two):
        train(tables, wide_specs, make_features, first=2, last=4)
    assert_close(two.state_dict(), one.state_dict())


def test_interleaved_widths_are_served(make_features):
    specs = [
        TableSpec(name=f"t{i}", num_embeddings=9, embedding_dim=w, feature_names=(f"f{i}",))
        for i, w in enumerate((4, 8, 4, 8))
    ]
    both = [full_tables(specs, optimizer=TableOptimizer(), backend=b) for b in ("fbgemm", "torch")]
    for tables in both:
        train(tables, specs, make_features, max_length=2)
    assert_close(both[0].state_dict(), both[1].state_dict())


@pytest.mark.parametrize(
    ("changes", "width", "reason"),
    [
        ({"kind": "adam"}, 4, "its CPU kernels are sgd, adagrad, rowwise_adagrad, not adam"),
        ({"weight_decay": 0.1}, 4, "ignore weight_decay"),
        ({"rows": "all"}, 4, "touched rows only"),
        ({}, 6, "widths must be multiples of 4, not 6"),
    ],
)
def test_asking_for_fbgemm_where_it_is_not_exact_is_refused_with_the_reason(changes, width, reason):
    spec = TableSpec(name="t", num_embeddings=9, embedding_dim=width, feature_names=("f",))
    optimizer = TableOptimizer(**changes)
    with pytest.raises(ValueError, match=reason):
        full_tables([spec], optimizer=optimizer, backend="fbgemm")
    full_tables([spec], optimizer=optimizer, backend="auto")


def test_asking_for_fbgemm_without_an_optimizer_is_refused(wide_specs):
    with pytest.raises(ValueError, match="pass an optimizer"):
        full_tables(wide_specs, backend="fbgemm")


def one_row_module(**options):
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(4, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        learning_rate=0.1,
        **{"optimizer": OptimType.EXACT_SGD, **options},
    )


def test_fbgemm_still_reads_row_0_for_an_id_out_of_range():
    """Why ids are checked before they reach it."""
    module = one_row_module()
    module.split_embedding_weights()[0].copy_(torch.arange(16.0).view(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = module(torch.tensor([99]), torch.tensor([0, 1]))
    assert torch.equal(found[0], torch.arange(4.0))


def test_fbgemm_still_has_no_adam_on_the_cpu():
    """Why `why_not` sends Adam to torch."""
    with pytest.raises(AssertionError, match="adam is not supported in CPU mode"):
        one_row_module(optimizer=OptimType.ADAM)


def test_fbgemm_still_loses_small_updates_of_float16():
    """Why `why_not` says no to float16: 1000 steps of a thousandth of an ulp should move a row."""
    module = one_row_module(weights_precision=SparseType.FP16, output_dtype=SparseType.FP32)
    module.split_embedding_weights()[0].fill_(1.0)
    for _ in range(1000):
        module(torch.tensor([1]), torch.tensor([0, 1])).backward(torch.full((1, 4), 1e-5))
    assert torch.equal(module.split_embedding_weights()[0][1], torch.ones(4).half())


def test_fbgemm_still_ignores_weight_decay_on_the_cpu():
    """Why `why_not` says no: once this fails, FBGEMM has learnt weight decay."""
    moved = []
    for weight_decay in (0.0, 0.5):
        module = SplitTableBatchedEmbeddingBagsCodegen(
            [(4, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=OptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=0.1,
            weight_decay=weight_decay,
        )
        module.split_embedding_weights()[0].fill_(1.0)
        module(torch.tensor([2]), torch.tensor([0, 1])).sum().backward()
        moved.append(module.split_embedding_weights()[0].clone())
    assert torch.equal(*moved)
