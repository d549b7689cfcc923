"""Ranks of one process, each in a thread, that speak of each other in one store."""

import threading
import time
from collections.abc import Callable

import pytest
from torch import distributed as dist

from recemb.train.roll_call import (
    LostRanksError,
    RollCall,
    is_lost_connection,
    note_step,
    wait_while_alive,
)

BEAT_SECONDS = 0.05
# As gloo words them.
TIMEOUT = RuntimeError("[/src/third_party/gloo/gloo/buffer.cc:78] Timed out waiting 4000ms")
CLOSED = RuntimeError("[/src/third_party/gloo/gloo/pair.cc:553] Connection closed by peer")


def roll_call(store: dist.Store, rank: int, world_size: int = 2) -> RollCall:
    return RollCall(
        store, rank=rank, world_size=world_size, timeout_seconds=4, beat_seconds=BEAT_SECONDS
    )


def ends(call: RollCall, error: Exception) -> Exception:
    """Return the error with which a rank ends whose work raised `error`."""
    try:
        with call:
            raise error
    except (LostRanksError, ValueError) as raised:
        return raised
    finally:
        call.leave()


def in_thread(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_a_rank_that_lives_and_does_not_come_is_named() -> None:
    store = dist.HashStore()
    with roll_call(store, 1):
        note_step(store, rank=1, step=16)
        error = ends(roll_call(store, 0), TIMEOUT)
    assert isinstance(error, LostRanksError)
    assert error.__cause__ is TIMEOUT
    assert "rank 1 (process " in str(error)
    assert "lives, but did not answer within 4 seconds" in str(error)
    assert "rank 0 before an update, rank 1 after update 16" in str(error)


def test_a_rank_that_is_gone_is_named() -> None:
    store = dist.HashStore()
    with roll_call(store, 1):
        # What it said last stays in the store.
        pass
    error = ends(roll_call(store, 0), CLOSED)
    assert isinstance(error, LostRanksError)
    assert "rank 1 (process " in str(error)
    assert "gives no sign of life" in str(error)


def test_of_a_rank_and_one_that_waits_for_it_the_first_is_named() -> None:
    store = dist.HashStore()
    found: list[Exception] = []
    with roll_call(store, 1, 3):
        other = in_thread(lambda: found.append(ends(roll_call(store, 2, 3), TIMEOUT)))
        found.append(ends(roll_call(store, 0, 3), TIMEOUT))
        other.join()
    assert len(found) == 2
    assert all(str(error).startswith("rank 1 (process ") for error in found)


def test_an_error_of_its_own_stays_and_the_others_learn_of_it() -> None:
    store = dist.HashStore()
    own: list[Exception] = []
    other = in_thread(lambda: own.append(ends(roll_call(store, 1), ValueError("no such file\nx"))))
    while not store.check(["roll_call/end/1"]):
        time.sleep(BEAT_SECONDS / 10)
    error = ends(roll_call(store, 0), CLOSED)
    other.join()
    assert [str(its) for its in own] == ["no such file\nx"]
    assert "stopped: ValueError: no such file. Last heard of" in str(error)


def test_the_first_rank_keeps_the_store_until_the_others_have_asked() -> None:
    store = dist.HashStore()
    order: list[str] = []

    def second() -> None:
        time.sleep(3 * BEAT_SECONDS)
        ends(roll_call(store, 1), CLOSED)
        order.append("second")

    thread = in_thread(second)
    ends(roll_call(store, 0), ValueError("mine"))
    order.append("first")
    thread.join()
    assert order == ["second", "first"]


def test_a_rank_that_ends_well_waits_for_nobody() -> None:
    call = roll_call(dist.HashStore(), 0)
    with call:
        pass
    started = time.monotonic()
    call.leave()
    assert time.monotonic() - started < BEAT_SECONDS


class StandingStore(dist.HashStore):
    """A store that stands still, as one does with the process that keeps it.

    As with TCPStore, who waits for an answer keeps other threads from sending.
    """

    def __init__(self) -> None:
        super().__init__()
        self.connection = threading.Lock()

    def set(self, key: str, value: str) -> None:
        with self.connection:
            super().set(key, value)

    def check(self, keys: list[str]) -> bool:
        with self.connection:
            time.sleep(100 * BEAT_SECONDS)
        return False


def test_a_store_that_does_not_answer_is_not_waited_for() -> None:
    started = time.monotonic()
    error = ends(roll_call(StandingStore(), 1), TIMEOUT)
    assert time.monotonic() - started < 50 * BEAT_SECONDS
    assert (
        "the store through which the ranks speak of each other is gone or does not answer"
        in str(error)
    )


@pytest.mark.parametrize("error", [TIMEOUT, CLOSED, dist.DistBackendError("NCCL: unhandled")])
def test_collectives_errors_are_known(error: Exception) -> None:
    assert is_lost_connection(error)


def test_an_error_that_came_of_a_collective_s_is_one() -> None:
    error = ValueError("in a clean-up")
    error.__context__ = CLOSED
    assert is_lost_connection(error)


def test_another_error_is_none_of_a_collective() -> None:
    assert not is_lost_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_connection(ValueError("the file /gloo/ is missing"))


def test_who_works_is_waited_for_beyond_the_patience_with_the_silent() -> None:
    store = dist.HashStore()
    with roll_call(store, 0):
        waiting = in_thread(
            lambda: wait_while_alive(store, "done", rank=0, silence_seconds=10 * BEAT_SECONDS)
        )
        time.sleep(30 * BEAT_SECONDS)
        assert waiting.is_alive()
        store.set("done", "1")
        waiting.join(timeout=10)
    assert not waiting.is_alive()


def test_who_is_silent_or_has_ended_is_not_waited_for() -> None:
    store = dist.HashStore()
    wait_while_alive(store, "done", rank=0, silence_seconds=BEAT_SECONDS)
    ends(roll_call(store, 1, world_size=1), ValueError("no disk"))
    started = time.monotonic()
    wait_while_alive(store, "done", rank=1)
    assert time.monotonic() - started < 30
