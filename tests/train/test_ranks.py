"""What ranks know of each other."""

import os
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist

from recemb.train.ranks import Ranks, process_group
from recemb.train.roll_call import LostRanksError, RollCall
from tests.end_to_end.runs import as_rank, free_port
from tests.processes import on_ranks


def test_a_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group(device="cpu", timeout_seconds=1) as ranks:
        assert ranks == Ranks(rank=0, world_size=1)
        ranks.note_step(3)
    assert ranks.timeout == timedelta(0)


def wait_alone(port: int) -> str:
    """Return what a rank says that no other joins."""
    dist.destroy_process_group()
    before = dict(os.environ)
    as_rank(0, 2, port)
    try:
        with process_group(device="cpu", timeout_seconds=2):
            return "all came"
    except LostRanksError as error:
        return str(error)
    finally:
        os.environ.clear()
        os.environ |= before
        # For the harness, which ends a group of its own.
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def test_a_rank_that_no_other_joins_gives_up_and_says_what_to_look_at() -> None:
    (said,) = on_ranks(1, wait_alone, free_port())
    assert said.startswith("rank 0 of 2 did not find the others within 2 seconds (timeout_seconds)")
    assert said.endswith("can all reach the address and port of the first?")


def work_alone() -> tuple[list[str], bool]:
    """Return what a rank did, and whether the first had ended when this one was let go."""
    ranks, done = Ranks.current(), []
    group = dist.group.WORLD
    assert group is not None
    store = group.get_group_store()

    def work() -> None:
        time.sleep(0.5)
        store.set("worked", "1")
        done.append("work")

    with RollCall(store, rank=ranks.rank, world_size=2, timeout_seconds=60):
        ranks.first_alone("work", work)
        return done, store.check(["worked"])


def test_others_wait_for_what_the_first_does_alone() -> None:
    assert on_ranks(2, work_alone) == [(["work"], True), ([], True)]


def told() -> bytes:
    """Return what a rank reads of the other's updates; its timeout is that of the group."""
    ranks = Ranks.current()
    ranks.note_step(10 + ranks.rank)
    ranks.wait()
    group = dist.group.WORLD
    assert group is not None
    found = group.get_group_store().get(f"roll_call/step/{1 - ranks.rank}")
    backend = group._get_backend(torch.device("cpu"))
    assert ranks.timeout == backend.options._timeout
    return found


def test_a_rank_s_last_update_is_known_to_the_others() -> None:
    assert on_ranks(2, told) == [b"11", b"10"]


def test_every_rank_draws_numbers_of_its_own() -> None:
    drawn = []
    for rank in range(4):
        torch.manual_seed(5)
        Ranks(rank, 4).part_random(5)
        drawn.append(tuple(torch.rand(8).tolist()))
    assert len(set(drawn)) == 4
