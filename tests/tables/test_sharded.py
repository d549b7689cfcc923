"""Sharded tables against the same tables in one process."""

import dataclasses
import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.sharded import ShardedTables
from recemb.tables.sharding import plan_sharding, read_shardings
from recemb.tables.spec import TableSpec
from recemb.tables.tensor_chunks import TensorChunks
from tests.processes import on_ranks
from tests.tables.sharded_runs import (
    MATRIX_METHODS,
    ROUNDING,
    SEQUENCES,
    Case,
    all_differences,
    batch,
    build,
    gathered,
    matrix_case,
    matrix_cases,
    scores_of,
    shard,
    train,
)

CASES = (
    Case(sharding="row_wise", optimizer="rowwise_adagrad"),
    Case(sharding="row_wise", optimizer="sgd", max_length=None),
    Case(sharding="table_wise", optimizer="adagrad", weighted=True),
    Case(sharding="column_wise", optimizer="adam"),
    Case(sharding="data_parallel", optimizer="rowwise_adam", micro_batches=2),
    Case(sharding="row_wise", optimizer="adam", micro_batches=2),
    Case(method="unified", sharding="row_wise", optimizer="adam"),
    Case(method="compo_emb", sharding="mixed", optimizer="adagrad"),
    Case(method="mde", sharding="row_wise", optimizer="adagrad"),
    Case(method="optembed", sharding="row_wise", optimizer="adam"),
    Case(method="tt_rec", sharding="row_wise", optimizer="sgd"),
    Case(method="robe", sharding="data_parallel", optimizer="sgd"),
    Case(method="dhe", sharding="table_wise", optimizer="sgd"),
    Case(method="matryoshka", sharding="mixed", optimizer="adagrad"),
    Case(method="mgqe", sharding="row_wise", optimizer="adagrad", batch_size=2),
    Case(specs=SEQUENCES, sharding="mixed", optimizer="adagrad"),
    # The first of two ranks has no example.
    Case(batch_size=1, sharding="mixed", optimizer="adam"),
    Case(batch_size=1, sharding="row_wise", max_length=None),
)


@pytest.fixture(scope="module")
def of_two_ranks() -> dict[Case, list[str | None]]:
    """Run all cases on two ranks; return what each rank found of each."""
    return dict(zip(CASES, zip(*on_ranks(2, all_differences, CASES), strict=True), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_train_as_one_process_does(of_two_ranks, case: Case) -> None:
    assert of_two_ranks[case] == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("method", MATRIX_METHODS)
def test_every_sharding_of_a_method_trains_as_one_process_does(method, world_size) -> None:
    cases = matrix_cases(method)
    for rank in on_ranks(world_size, all_differences, cases):
        found = {str(case): its for case, its in zip(cases, rank, strict=True) if its}
        assert not found


def train_on(
    case: Case, sharding: str, state: dict[str, Any] | None, first_step: int
) -> dict[str, Any] | None:
    """Take up a state, train from a step on, and return the state, on the first rank, whole."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    its = dataclasses.replace(case, sharding=sharding)
    tables = build(its, "cpu") if world_size == 1 else shard(its)
    if state is not None:
        tables.load_state_dict(state)
    train(tables, its, rank=rank, world_size=world_size, first_step=first_step)
    return gathered(tables)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
@pytest.mark.parametrize("method", MATRIX_METHODS)
def test_training_goes_on_over_other_ranks_and_plans_as_if_undisturbed(method, optimizer) -> None:
    """One rank, two, four and one again; by rows, then every table by another plan."""
    case = matrix_case(method, optimizer=optimizer)
    state, step = None, 0
    for world_size, sharding in ((1, "row_wise"), (2, "row_wise"), (4, "mixed"), (1, "row_wise")):
        leg = dataclasses.replace(case, num_steps=step + 10)
        state = on_ranks(world_size, train_on, leg, sharding, state, step)[0]
        step += 10
    undisturbed = dataclasses.replace(case, num_steps=40)
    (expected,) = on_ranks(1, train_on, undisturbed, "row_wise", None, 0)
    torch.testing.assert_close(state, expected, **ROUNDING)


def hold_within(allowance: int | None, num_rows: int) -> str:
    """Train a table that only grows by so many bytes of memory; return what came of it."""
    spec = TableSpec(name="t", num_embeddings=num_rows, embedding_dim=16, feature_names=("f",))
    case = Case(specs=(spec,), optimizer="rowwise_adagrad", max_length=None, num_steps=2)
    # What the first use of everything takes does not count.
    small = dataclasses.replace(case, specs=(dataclasses.replace(spec, num_embeddings=100),))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    make = shard if world_size > 1 else partial(build, device="cpu")
    train(make(small), small, rank=rank, world_size=world_size)
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    most = resource.RLIM_INFINITY if allowance is None else held + allowance
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
    try:
        train(make(case), case, rank=rank, world_size=world_size)
    except (RuntimeError, MemoryError) as error:
        return str(error).splitlines()[0]
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "trained"


@pytest.mark.slow
def test_a_table_larger_than_a_process_may_hold_trains_over_two() -> None:
    """A table of 384 MB, and 270 MB for each process."""
    num_rows, allowance = 6_000_000, 270_000_000
    assert "allocate" in on_ranks(1, hold_within, allowance, num_rows)[0]
    assert on_ranks(2, hold_within, allowance, num_rows) == ["trained", "trained"]
    assert on_ranks(1, hold_within, None, num_rows) == ["trained"]


def exchange_states() -> None:
    """Load states of one sharding into another, and into one process, and back."""
    case = Case(optimizer="adam", num_steps=3)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    rows = shard(case)
    train(rows, case, rank=rank, world_size=world_size)
    whole = gathered(rows)
    everywhere = [whole]
    dist.broadcast_object_list(everywhere)
    whole = everywhere[0]
    one = build(dataclasses.replace(case), "cpu")
    one.load_state_dict(whole)
    other = shard(dataclasses.replace(case, sharding="mixed"))
    other.load_state_dict(one.state_dict())
    again = gathered(other)
    if again is not None:
        torch.testing.assert_close(again, whole, rtol=0, atol=0)
    # What goes on from there is the same, too.
    expected = train(one, case)
    found = train(other, case, rank=rank, world_size=world_size)
    share = slice(case.batch_size * rank // world_size, case.batch_size * (rank + 1) // world_size)
    torch.testing.assert_close(found, expected[share], **ROUNDING)


def look_at_parts() -> None:
    """Check what a rank holds, and what it refuses."""
    case = Case(optimizer="rowwise_adagrad")
    rank = dist.get_rank()
    tables = shard(case)
    state = tables.state_dict()
    assert set(state) == set(build(case, "cpu").state_dict())
    weight = state["embedding_bags.a.weight"]
    assert isinstance(weight, TensorChunks)
    assert [(c.offsets, tuple(c.values.shape)) for c in weight.chunks] == [
        ((25 * rank, 0), (25, 8))
    ]
    held = sum(
        chunk.values.nbytes
        for its in state.values()
        if isinstance(its, TensorChunks)
        for chunk in its.chunks
    )
    assert held == tables.rank_bytes()[rank]
    assert tables.storage() == build(case, "meta").storage()
    one = build(case, "cpu")
    ids = torch.tensor([3, 49, 3]) if rank == 0 else torch.tensor([], dtype=torch.int64)
    torch.testing.assert_close(tables.rows("f1@a", ids), one.rows("f1@a", ids), rtol=0, atol=0)
    with tables.hold_rows():
        assert not tables(batch(case, 0, 0, 2)).values().requires_grad
    tables.eval()
    with torch.no_grad():
        tables(batch(case, 0, 0, 2))
    with pytest.raises(RuntimeError, match="tables are in eval mode"):
        tables(batch(case, 0, 0, 2)).values().sum().backward()
    for refused, message in ((tables.freeze, "no serving form"), (tables.table, "is sharded")):
        with pytest.raises((ValueError, NotImplementedError), match=message):
            refused(*(["a"] if refused == tables.table else []))


def test_states_move_between_shardings_and_one_process() -> None:
    on_ranks(2, exchange_states)


def test_a_rank_holds_its_shards_and_no_more() -> None:
    on_ranks(2, look_at_parts)


def save_in_the_middle(sharding: str) -> None:
    """Check that a state is refused between the micro-batches of an update, and then not."""
    case = Case(sharding=sharding, optimizer="adagrad", micro_batches=2)
    rank = dist.get_rank()
    tables = shard(case)
    share = (case.batch_size * rank // 2, case.batch_size * (rank + 1) // 2)
    tables.defer_updates(True)
    scores_of(tables, batch(case, 0, *share))[0].sum().backward()
    with pytest.raises(RuntimeError, match="unfinished micro-batches"):
        tables.state_dict()
    tables.defer_updates(False)
    scores_of(tables, batch(case, 1, *share))[0].sum().backward()
    tables.state_dict()


@pytest.mark.parametrize("sharding", ["data_parallel", "row_wise"])
def test_unfinished_accumulation_is_not_saved_in_silence(sharding: str) -> None:
    on_ranks(2, save_in_the_middle, sharding)


def refuse_wrong_size() -> None:
    meta = build(Case(), "meta")
    plan = plan_sharding(
        meta.plan.tables, read_shardings("row_wise", meta.plan.tables), world_size=3
    )
    with pytest.raises(ValueError, match="is for 3 ranks, but there are 1"):
        ShardedTables(meta, plan)


def refuse_columns_of_rowwise_state() -> None:
    meta = build(Case(optimizer="rowwise_adagrad"), "meta")
    tables = meta.plan.tables
    plan = plan_sharding(
        tables,
        read_shardings({"default": {"kind": "column_wise", "ranks": [0, 0]}}, tables),
        world_size=1,
    )
    with pytest.raises(ValueError, match=r"needs the mean over a whole row's gradient.*row_wise"):
        ShardedTables(meta, plan)


@pytest.mark.parametrize("refuse", [refuse_wrong_size, refuse_columns_of_rowwise_state])
def test_what_cannot_be_is_refused_before_anything_is_allocated(refuse) -> None:
    on_ranks(1, refuse)


def test_tables_that_exist_are_not_sharded() -> None:
    assert "meta device" in str(build(Case(), "cpu").why_not_sharded())


def test_tables_without_an_optimizer_are_not_sharded() -> None:
    made = build(Case(), "meta")
    plain = PlannedTables(made.specs, made.plan, device="meta")
    assert "optimizer=TableOptimizer" in str(plain.why_not_sharded())


def test_tables_of_another_class_are_not_sharded() -> None:
    class Special(PlannedTables):
        """Tables that do more."""

    made = build(Case(), "meta")
    special = Special(made.specs, made.plan, optimizer=TableOptimizer(), device="meta")
    assert str(special.why_not_sharded()).startswith("Special do more than look rows up")
