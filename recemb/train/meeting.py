"""How ranks that were started together tell themselves from those of earlier attempts.

torchrun's store outlives a restart, and holds the addresses of processes that are gone; how often
they were started each of its agents counts for itself. So the first rank gives every attempt a name
of its own, and says it to those alone who ask now.
"""

import time
import uuid

from recemb.train.roll_call import SharedStore

_PAUSE_SECONDS = 0.02


class AbsentRanksError(RuntimeError):
    """Some ranks did not come in time; the message says which."""


def name_of_attempt(
    store: SharedStore, *, rank: int, world_size: int, timeout_seconds: float
) -> str:
    """Return a name that all ranks of this attempt have, and no rank of an earlier one.

    Collective: every rank calls it once in an attempt. No rank of an earlier attempt may be alive.

    Args:
        store: that all ranks share.
        rank: this one.
        world_size: number of ranks.
        timeout_seconds: how long to wait for the others.

    Raises:
        AbsentRanksError: on the first rank, if others do not come in time.
        DistError: on another, if the first does not answer in time.
    """
    if rank == 0:
        return _welcome(store, world_size, timeout_seconds)
    me = uuid.uuid4().hex
    store.set(_key("hello", rank), me)
    name: str = store.get(_key("welcome", me)).decode()
    store.set(_key("came", name, rank), "1")
    return name


def _welcome(store: SharedStore, world_size: int, timeout_seconds: float) -> str:
    """Tell a new name to every rank that asks, until all have it; whoever asked before is gone."""
    name = uuid.uuid4().hex
    absent = set(range(1, world_size))
    deadline = time.monotonic() + timeout_seconds
    while absent:
        for rank in sorted(absent):
            if store.check([_key("hello", rank)]):
                store.set(_key("welcome", store.get(_key("hello", rank)).decode()), name)
            if store.check([_key("came", name, rank)]):
                absent.remove(rank)
        if absent and time.monotonic() > deadline:
            raise AbsentRanksError(f"ranks {sorted(absent)} did not come")
        time.sleep(_PAUSE_SECONDS)
    return name


def _key(*words: object) -> str:
    return "/".join(("meeting", *map(str, words)))
