"""Who is missing when the processes that train together lose one another.

Each rank says in the process group's store that it lives, which update it has made, and how it
ended. A collective that fails knows none of that: it times out, or a connection closes.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

from torch import distributed as dist

from recemb.train.missing_ranks import NO_STORE, WAITED, Sign, describe, is_explained

_BEAT_SECONDS = 1.0
# A rank that is busy may be late with a beat; one that is gone is late with all of them.
_BEATS_TO_LISTEN = 5

T = TypeVar("T")


class SharedStore(Protocol):
    """What is used of torch.distributed's stores."""

    def set(self, key: str, value: str, /) -> None:
        """Write a value; waits for nobody."""

    def get(self, key: str, /) -> bytes:
        """Return a value, when it is there."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether all keys are there."""


class LostRanksError(ConnectionError):
    """Processes that train together have lost one another; the message says who is to blame."""


class RollCall:
    """Within this context a rank tells the others of itself, and learns who is missing.

    An error of its own it tells the others. An error of a collective is replaced: the other ranks'
    signs of life say whose fault it is.

    Args:
        store: that all ranks share.
        rank: this one.
        world_size: number of ranks.
        timeout_seconds: how long a collective waits.
        beat_seconds: how often a rank says that it lives.
    """

    def __init__(
        self,
        store: SharedStore,
        *,
        rank: int,
        world_size: int,
        timeout_seconds: float,
        beat_seconds: float = _BEAT_SECONDS,
    ) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._timeout_seconds = timeout_seconds
        self._beat_seconds = beat_seconds
        self._is_over = threading.Event()
        self._has_failed = False
        self._is_answered = True
        self._missing: frozenset[int] = frozenset()
        self._beats = threading.Thread(target=self._beat, name="roll call", daemon=True)

    def __enter__(self) -> Self:
        place = f"process {os.getpid()} on {socket.gethostname()}"
        for kind, text in (("end", ""), ("left", ""), ("step", ""), ("place", place)):
            self._store.set(_key(kind, self._rank), text)
        self._beats.start()
        return self

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                self._has_failed = True
                self._fail(error)
        finally:
            self._is_over.set()
            self._beats.join(timeout=self._beat_seconds)

    def leave(self) -> None:
        """Let the others know that this rank asks nothing more; the first waits for all to say so.

        To be called when the process group is gone: the others notice, and ask. For torchrun the
        store is its own, but where there is none it ends with the first rank.
        """
        # Where a question has no answer yet, its thread holds the connection to the store.
        if not self._has_failed or not self._is_answered:
            return
        with contextlib.suppress(dist.DistError):
            self._store.set(_key("left", self._rank), "1")
        if self._rank == 0:
            self._ask(self._all_left)

    def _fail(self, error: BaseException) -> None:
        """Tell the others how this rank ends.

        Raises:
            LostRanksError: instead of `error`, if that is a collective's.
        """
        is_collective = is_lost_connection(error)
        text = WAITED if is_collective else f"{type(error).__name__}: {_first_line(error)}"
        # Without a store there is nobody to tell.
        with contextlib.suppress(dist.DistError):
            self._store.set(_key("end", self._rank), text)
        if is_collective:
            with _ignoring_sigterm():
                message = self._ask(self._who_is_missing)
            raise LostRanksError(message or NO_STORE) from error

    def _who_is_missing(self) -> str:
        """Listen to the other ranks; return what can be said of them."""
        first = self._signs()
        signs = first
        deadline = time.monotonic() + _BEATS_TO_LISTEN * self._beat_seconds
        while not is_explained(signs) and time.monotonic() < deadline:
            time.sleep(self._beat_seconds / 4)
            signs = self._signs()
        silent = frozenset(rank for rank, sign in signs.items() if not sign.end)
        if not is_explained(signs):
            self._missing = silent
        dead = {rank for rank in silent if signs[rank].beats == first[rank].beats}
        return describe(signs, dead=dead, timeout_seconds=self._timeout_seconds)

    def _all_left(self) -> None:
        others = [r for r in range(1, self._world_size) if r not in self._missing]
        while not all(self._read("left", rank) for rank in others):
            time.sleep(self._beat_seconds / 4)

    def _ask(self, question: Callable[[], T]) -> T | None:
        """Return the answer of the store; None if it is gone, or there is none in time.

        It may stand still with the rank that keeps it, and who asks, with it.
        """
        answers: list[T] = []

        def ask() -> None:
            with contextlib.suppress(dist.DistError):
                answers.append(question())

        asking = threading.Thread(target=ask, name="roll call", daemon=True)
        asking.start()
        asking.join(timeout=2 * _BEATS_TO_LISTEN * self._beat_seconds)
        self._is_answered = bool(answers)
        return answers[0] if answers else None

    def _beat(self) -> None:
        beats = 0
        # A store that is gone is the main thread's to notice.
        with contextlib.suppress(dist.DistError):
            while not self._is_over.is_set():
                self._store.set(_key("beats", self._rank), str(beats))
                beats += 1
                self._is_over.wait(self._beat_seconds)

    def _signs(self) -> dict[int, Sign]:
        return {rank: self._sign(rank) for rank in range(self._world_size)}

    def _sign(self, rank: int) -> Sign:
        beats = self._read("beats", rank)
        return Sign(
            beats=int(beats) if beats else None,
            place=self._read("place", rank),
            step=self._read("step", rank),
            end=self._read("end", rank),
        )

    def _read(self, kind: str, rank: int) -> str:
        key = _key(kind, rank)
        # To get what is not there would wait for it.
        return self._store.get(key).decode() if self._store.check([key]) else ""


def note_step(store: SharedStore, *, rank: int, step: int) -> None:
    """Let the other ranks know the last update that a rank has made.

    No answer is awaited: it costs a small message in the direction of the store.
    """
    store.set(_key("step", rank), str(step))


def wait_while_alive(
    store: SharedStore, key: str, *, rank: int, silence_seconds: float = 60.0
) -> None:
    """Return when a key is there, or its rank has ended, or gives no sign of life.

    Args:
        store: that all ranks share, in which `rank` is within a `RollCall`.
        key: that the rank will write.
        rank: this one.
        silence_seconds: after how long without a sign a rank is taken for dead.
    """
    beats, heard = b"", time.monotonic()
    while not store.check([key]) and time.monotonic() < heard + silence_seconds:
        mine, end = _key("beats", rank), _key("end", rank)
        if store.check([end]) and store.get(end):
            return
        if store.check([mine]) and (found := store.get(mine)) != beats:
            beats, heard = found, time.monotonic()
        time.sleep(_BEAT_SECONDS / 10)


def is_lost_connection(error: BaseException | None) -> bool:
    """Return whether an error, or what it came of, is that of a collective and not of this rank."""
    while error is not None:
        # Gloo has no class for its errors; they name its source file.
        if isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and "/gloo/" in str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _key(kind: str, rank: int) -> str:
    return f"roll_call/{kind}/{rank}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:500]


@contextlib.contextmanager
def _ignoring_sigterm() -> Iterator[None]:
    """Within this context SIGTERM is ignored: torchrun sends it as soon as one process has died.

    Python lets the main thread alone do so; in others nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
