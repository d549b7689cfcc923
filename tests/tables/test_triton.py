"""The Triton backend, interpreted on a CPU, against the torch backend: one plan, one result."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.optimizer import KINDS, TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.program import Digit, Hash, Offset
from recemb.tables.spec import TableSpec

# The same float32 formulas with sums in another order, over some steps.
STEPS = {"rtol": 1e-4, "atol": 1e-5}
BATCH_SIZE = 4
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def lookups(kind, feature):
    if kind == "probes":
        return tuple(
            VirtualLookup(table="t", program=(Hash(seed=9 * feature + j, num_rows=7),))
            for j in range(2)
        )
    if kind == "exact":
        own = VirtualLookup(table="t", program=(Offset(first=20 * feature),))
        return own, VirtualLookup(table="t", program=(Hash(seed=feature, num_rows=7),))
    return (
        VirtualLookup(table="t", program=(Digit(modulus=5),)),
        VirtualLookup(table="t", program=(Digit(divisor=5),)),
    )


def plan_of(kind, pooling="sum", dtype="float32"):
    return LookupPlan(
        tables=(PhysicalTable(name="t", num_rows=40, width=4, dtype=dtype),),
        outputs=tuple(
            Output(
                key=f"f{f}",
                feature=f"f{f}",
                owner="t",
                num_ids=20,
                embedding_dim=4 if kind == "product" else 8,
                pooling=pooling,
                lookups=lookups(kind, f),
                combine="product" if kind == "product" else "concat",
            )
            for f in range(2)
        ),
    )


def specs_of(plan):
    return [
        TableSpec(
            name=o.key,
            num_embeddings=20,
            embedding_dim=o.embedding_dim,
            feature_names=(o.feature,),
            pooling=o.pooling,
        )
        for o in plan.outputs
    ]


def build(plan, backend, device, **changes):
    return PlannedTables(
        specs_of(plan),
        plan,
        backend=backend,
        initial={"t": Initial(distribution="normal", spread=1.0)},
        optimizer=TableOptimizer(**{"eps": 1e-3, "learning_rate": 0.1, **changes}),
        device=device,
    )


def draw(seed, device, *, max_length=3, weighted=True):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.ones(2 * BATCH_SIZE, dtype=torch.int32)
    if max_length is not None:
        lengths = torch.randint(0, max_length + 1, (2 * BATCH_SIZE,), generator=generator).int()
    values = torch.randint(0, 20, (int(lengths.sum()),), generator=generator)
    weights = torch.randn(values.numel(), generator=generator) if weighted else None
    return KeyedJaggedTensor(keys=["f0", "f1"], values=values, lengths=lengths, weights=weights).to(
        torch.device(device)
    )


def train(tables, device, num_steps=2, **options):
    for step in range(num_steps):
        vectors = tables(draw(step, device, **options)).values()
        generator = torch.Generator().manual_seed(step)
        vectors.backward(torch.randn(vectors.shape, generator=generator).to(device))


def assert_equal_training(plan, device, *, inputs=None, **changes):
    both = [build(plan, backend, device, **changes) for backend in ("triton", "torch")]
    assert [updater.backend for updater in both[0].engine.updaters] == ["triton"]
    for tables in both:
        train(tables, device, **(inputs or {}))
    state, expected = (tables.state_dict() for tables in both)
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, **STEPS)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["probes", "exact"])
@pytest.mark.parametrize(
    "inputs", [{"max_length": None, "weighted": False}, {"weighted": False}, {}]
)
def test_vectors_weights_and_state_equal_the_torch_backend(kind, pooling, inputs, device):
    assert_equal_training(plan_of(kind, pooling), device, inputs=inputs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "changes",
    [
        *({"kind": kind} for kind in KINDS),
        {"kind": "adam", "weight_decay": 0.1},
        {"kind": "adagrad", "weight_decay": 0.1, "weight_decay_mode": "decoupled"},
    ],
    ids=str,
)
def test_every_optimizer_equals_the_torch_backend(changes, device):
    assert_equal_training(plan_of("probes"), device, **changes)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_composed_before_pooling_train_as_on_torch(device):
    assert_equal_training(plan_of("product"), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rounds_by_the_same_random_bits(dtype, device):
    plan = plan_of("probes", dtype=dtype)
    both = [build(plan, b, device, kind="sgd") for b in ("triton", "torch")]
    for tables in both:
        train(tables, device, num_steps=1, max_length=None, weighted=False)
    # One id per bag and few duplicates: where both make the same float32 sum, the bits agree.
    same = both[0].table("t") == both[1].table("t")
    assert same.float().mean() > 0.99


@pytest.mark.parametrize("device", DEVICES)
def test_weights_of_ids_get_the_gradient_of_the_torch_backend(device):
    found = []
    for backend in ("triton", "torch"):
        features = draw(0, device)
        features.weights().requires_grad_()
        (build(plan_of("probes", "mean"), backend, device)(features).values() ** 2).sum().backward()
        found.append(features.weights().grad)
    torch.testing.assert_close(*found, **STEPS)


@pytest.mark.parametrize("device", DEVICES)
def test_micro_batches_are_summed_before_the_update(device):
    plan = plan_of("probes")
    both = [build(plan, backend, device) for backend in ("triton", "torch")]
    for tables in both:
        tables.defer_updates(True)
        train(tables, device, num_steps=1)
        tables.defer_updates(False)
        train(tables, device, num_steps=1)
    torch.testing.assert_close(both[0].table("t"), both[1].table("t"), **STEPS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optimizer": None}, "pass an optimizer"),
        ({"optimizer": TableOptimizer(rows="all")}, "touched rows only"),
    ],
)
def test_triton_is_refused_with_the_reason_where_it_cannot_serve(changes, reason):
    plan = plan_of("probes")
    with pytest.raises(ValueError, match=reason):
        PlannedTables(specs_of(plan), plan, backend="triton", **changes)


def test_triton_is_refused_on_a_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    spec = TableSpec(name="t", num_embeddings=9, embedding_dim=4, feature_names=("f",))
    with pytest.raises(ValueError, match="its kernels run on CUDA devices, not on cpu"):
        PlannedTables(
            [spec], full_plan([spec]), backend="triton", optimizer=TableOptimizer(), device="cpu"
        )
