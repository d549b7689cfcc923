"""Tables of integers times a step: float32 vectors, stochastic rounding of updates."""

import dataclasses

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.optimizer import KINDS, TableOptimizer
from recemb.tables.physical_table import PhysicalTable
from recemb.tables.planned import PlannedTables
from recemb.tables.rounding import Grid
from recemb.tables.spec import TableSpec

INTEGERS = {"int8": torch.int8, "int16": torch.int16}
NUM_ROWS, WIDTH, STEP = 50, 8, 0.01
SPEC = TableSpec(
    name="t", num_embeddings=NUM_ROWS, embedding_dim=WIDTH, feature_names=("f",), pooling="sum"
)


def features(values, lengths, weights=None):
    return KeyedJaggedTensor(
        keys=["f"],
        values=torch.tensor(values),
        lengths=torch.tensor(lengths, dtype=torch.int32),
        weights=weights,
    )


def tables_of(dtype, backend="auto", **changes):
    return PlannedTables(
        [SPEC],
        full_plan([SPEC], dtype=dtype, step=None if dtype == "float32" else STEP),
        initial={"t": Initial(distribution="uniform", spread=0.5)},
        optimizer=TableOptimizer(**changes),
        seed=1,
        device=torch.device("cpu"),
        backend=backend,
    )


@pytest.mark.parametrize("dtype", INTEGERS)
def test_rounding_is_one_of_two_neighbours_and_right_on_average(dtype):
    values = torch.tensor([0.123456, -0.98765, 0.5, 0.0]).repeat(20_000, 1)
    grid = Grid(dtype=INTEGERS[dtype], step=STEP, seed=3)
    found = grid.apply(values, torch.arange(20_000)).double() * STEP
    assert ((found - values.double()).abs() < STEP * 1.0001).all()
    # A mean of 20 000 draws between two neighbours: a deviation of at most STEP / 2 / 141.
    error = (found.mean(dim=0) - values[0].double()).abs()
    assert (error < 5 * STEP / 2 / 141).all()
    assert (found[:, 3] == 0).all()


@pytest.mark.parametrize("dtype", INTEGERS)
def test_values_beyond_the_integers_stop_at_the_last(dtype):
    limits = torch.iinfo(INTEGERS[dtype])
    values = torch.tensor([[1e9, -1e9, 0.0]])
    found = Grid(dtype=INTEGERS[dtype], step=STEP, seed=3).apply(values, torch.tensor([0]))
    assert found.tolist() == [[limits.max, limits.min, 0]]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_draws_differ_between_rows_and_between_seeds(dtype):
    values = torch.full((200, 8), 0.5 * STEP)
    one, other = (
        Grid(dtype=INTEGERS[dtype], step=STEP, seed=seed).apply(values, torch.arange(200))
        for seed in (1, 2)
    )
    for draws in (one, other, one ^ other):
        assert 0.4 < float(draws.float().mean()) < 0.6


@pytest.mark.parametrize("dtype", INTEGERS)
def test_vectors_are_weighted_sums_of_integers_times_the_step(dtype):
    tables = tables_of(dtype)
    rows, weights = tables.table("t"), torch.tensor([0.5, 2.0, -1.0])
    assert rows.dtype == INTEGERS[dtype]
    found = tables(features([3, 4, 3], [2, 1], weights)).values()
    expected = rows.double() * STEP
    torch.testing.assert_close(found[0].double(), 0.5 * expected[3] + 2 * expected[4])
    torch.testing.assert_close(found[1].double(), -expected[3])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_weights_get_the_gradient_of_the_vectors_that_were_read(dtype):
    tables = tables_of(dtype)
    weights = torch.tensor([0.5, 2.0], requires_grad=True)
    grad = torch.randn(1, WIDTH)
    expected = (tables.rows("f", torch.tensor([3, 4])) * grad).sum(dim=1)
    tables(features([3, 4], [2], weights)).values().backward(grad)
    torch.testing.assert_close(weights.grad, expected)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_float32_step_to_within_one_integer(dtype, kind):
    coarse = tables_of(dtype, kind=kind, learning_rate=0.1, eps=1e-3)
    exact = tables_of("float32", kind=kind, learning_rate=0.1, eps=1e-3)
    exact.table("t").copy_(coarse.table("t") * STEP)
    batch, grad = features([1, 2, 2, 7], [1, 2, 1]), torch.randn(3, WIDTH)
    for tables in (coarse, exact):
        tables(batch).values().backward(grad)
    found = coarse.table("t").double() * STEP
    assert ((found - exact.table("t").double()).abs() < STEP * 1.0001).all()


@pytest.mark.parametrize("backend", ["fbgemm", "triton"])
def test_a_backend_that_cannot_train_integers_is_refused_with_the_reason(backend):
    with pytest.raises(ValueError, match=f"'{backend}' cannot serve.*int8"):
        tables_of("int8", backend=backend)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_small_updates_arrive_on_average(dtype):
    """Updates of a hundredth of a step, which rounding to nearest would lose one and all."""
    tables = tables_of(dtype, kind="sgd", learning_rate=1.0)
    tables.table("t").fill_(7)
    ids = list(range(NUM_ROWS))
    for _ in range(400):
        grad = torch.full((NUM_ROWS, WIDTH), -0.01 * STEP)
        tables(features(ids, [1] * NUM_ROWS)).values().backward(grad)
    # 4 expected; 400 values, each a sum of 400 draws of variance 0.01 * 0.99: 0.1 in the mean.
    assert abs(float(tables.table("t").double().mean()) - 11.0) < 0.5


@pytest.mark.parametrize("dtype", INTEGERS)
def test_untouched_rows_keep_their_integers(dtype):
    tables = tables_of(dtype)
    before = tables.table("t").clone()
    tables(features([4], [1])).values().sum().backward()
    others = torch.arange(NUM_ROWS) != 4
    assert torch.equal(tables.table("t")[others], before[others])
    assert not torch.equal(tables.table("t")[4], before[4])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_training_goes_on_bit_by_bit_after_a_state_dict_round_trip(dtype):
    one, two = tables_of(dtype), tables_of(dtype)
    batch = features([1, 2, 2, 7], [1, 2, 1])
    one(batch).values().sum().backward()
    two.load_state_dict(one.state_dict())
    for tables in (one, two):
        tables(batch).values().pow(2).sum().backward()
    assert torch.equal(one.table("t"), two.table("t"))


def test_the_step_survives_json():
    plan = full_plan([SPEC], dtype="int16", step=STEP)
    again = LookupPlan.from_json(plan.to_json())
    assert again == plan
    assert again.table("t").step == STEP


def test_tables_of_unequal_steps_stand_in_buffers_of_their_own():
    other = dataclasses.replace(SPEC, name="u", feature_names=("g",))
    plans = [full_plan([SPEC], dtype="int8", step=0.01), full_plan([other], dtype="int8", step=0.1)]
    plan = LookupPlan(
        tables=tuple(t for p in plans for t in p.tables),
        outputs=tuple(o for p in plans for o in p.outputs),
    )
    tables = PlannedTables([SPEC, other], plan, optimizer=None, seed=1, device=torch.device("cpu"))
    for name in ("t", "u"):
        tables.table(name).fill_(3)
    batch = KeyedJaggedTensor(
        keys=["f", "g"], values=torch.tensor([1, 1]), lengths=torch.ones(2).int()
    )
    found = tables(batch).to_dict()
    torch.testing.assert_close(found["f"], torch.full((1, WIDTH), 0.03))
    torch.testing.assert_close(found["g"], torch.full((1, WIDTH), 0.3))


@pytest.mark.parametrize(("dtype", "step"), [("float32", 0.01), ("uint8", 0.01), ("int8", 0.0)])
def test_a_step_is_positive_and_for_signed_integers(dtype, step):
    with pytest.raises(ValueError, match="a step is positive"):
        PhysicalTable(name="t", num_rows=2, width=2, dtype=dtype, step=step)
