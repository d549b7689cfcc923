"""How ranks of one attempt find one another in a store that outlives it."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch import distributed as dist

from recemb.train.meeting import AbsentRanksError, name_of_attempt


def attempt(store, order):
    """Return the names that ranks, started in this order, agree on."""
    world_size = len(order)
    with ThreadPoolExecutor(world_size) as pool:
        asked = {
            rank: pool.submit(
                name_of_attempt, store, rank=rank, world_size=world_size, timeout_seconds=10
            )
            for rank in order
        }
        return [asked[rank].result() for rank in range(world_size)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_ranks_have_one_name_and_every_attempt_another(order):
    store = dist.HashStore()
    names = [attempt(store, order) for _ in range(3)]
    assert all(len(set(its)) == 1 for its in names)
    assert len({its[0] for its in names}) == 3


def test_what_an_earlier_attempt_left_is_not_taken_for_a_rank():
    """Ranks that said hello before are gone: the first waits for them to come again."""
    store = dist.HashStore()
    attempt(store, (0, 1))
    with pytest.raises(AbsentRanksError, match=r"ranks \[1\] did not come"):
        name_of_attempt(store, rank=0, world_size=2, timeout_seconds=0.1)


def test_a_rank_without_a_first_one_gives_up():
    store = dist.HashStore()
    attempt(store, (0, 1))
    store.set_timeout(timedelta(seconds=0.1))
    with pytest.raises(dist.DistError):
        name_of_attempt(store, rank=1, world_size=2, timeout_seconds=0.1)
