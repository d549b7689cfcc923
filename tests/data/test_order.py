"""Every row is read once, in an order that is a pure function of its key."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.data.order import RowOrder, Shares

SIZES = [(1, 1, 1), (10, 3, 7), (100, 8, 32), (97, 8, 32), (1000, 1, 1000), (64, 64, 64)]


@pytest.mark.parametrize(("num_rows", "block_rows", "window_rows"), SIZES)
def test_shuffle_is_a_permutation(num_rows: int, block_rows: int, window_rows: int) -> None:
    order = RowOrder(num_rows, seed=3, block_rows=block_rows, window_rows=window_rows)
    assert sorted(order.rows(0, num_rows).tolist()) == list(range(num_rows))


@pytest.mark.parametrize(("num_rows", "block_rows", "window_rows"), SIZES)
def test_any_part_equals_that_part_of_the_whole(
    num_rows: int, block_rows: int, window_rows: int
) -> None:
    def fresh() -> RowOrder:
        return RowOrder(num_rows, seed=3, epoch=1, block_rows=block_rows, window_rows=window_rows)

    whole = fresh().rows(0, num_rows)
    for start in range(0, num_rows, max(1, num_rows // 7)):
        for stop in (start, start + 1, num_rows):
            assert fresh().rows(start, stop).tolist() == whole[start:stop].tolist()


def test_epochs_and_seeds_give_different_orders() -> None:
    orders = {tuple(RowOrder(50, seed=s, epoch=e).rows(0, 50)) for s in (0, 1) for e in (0, 1)}
    assert len(orders) == 4


def test_without_shuffle_the_order_is_that_of_the_files() -> None:
    assert RowOrder(9, shuffle=False).rows(2, 6).tolist() == [2, 3, 4, 5]


def test_windowed_shuffle_brings_rows_from_all_over_the_file() -> None:
    order = RowOrder(100_000, block_rows=64, window_rows=8192)
    first = order.rows(0, 1000)
    # 128 blocks drawn from 1,563: their mean place is the middle, give or take 2.5 percent.
    assert abs(first.mean() / 100_000 - 0.5) < 0.15
    assert len({int(r) // 64 for r in first}) > 100


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed and epoch must be at least 0"):
        RowOrder(5, seed=-1)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 9), st.integers(1, 6), st.booleans())
def test_ranks_share_out_the_batches_of_one_rank(
    num_rows: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    shares = [
        Shares(num_rows, batch_size=batch_size, rank=r, world_size=world_size, drop_last=drop_last)
        for r in range(world_size)
    ]
    steps = num_rows // batch_size if drop_last else math.ceil(num_rows / batch_size)
    assert {s.num_steps for s in shares} == {steps}
    for step in range(steps):
        bounds = [share.bounds(step) for share in shares]
        places = [place for start, stop in bounds for place in range(start, stop)]
        first = step * batch_size
        assert places == list(range(first, min(first + batch_size, num_rows)))
        sizes = [stop - start for start, stop in bounds]
        assert max(sizes) - min(sizes) <= 1


def test_one_rank_gets_plain_batches_and_a_smaller_last_one() -> None:
    share = Shares(10, batch_size=4, rank=0, world_size=1, drop_last=False)
    assert [share.bounds(i) for i in range(share.num_steps)] == [(0, 4), (4, 8), (8, 10)]


def test_a_rank_may_have_no_share_of_a_small_last_batch() -> None:
    bounds = [
        Shares(9, batch_size=8, rank=r, world_size=2, drop_last=False).bounds(1) for r in range(2)
    ]
    assert bounds == [(8, 8), (8, 9)]


def test_rank_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"):
        Shares(10, batch_size=2, rank=2, world_size=2, drop_last=False)


def test_exact_shuffle_is_uniform_over_places() -> None:
    places = np.array(
        [np.flatnonzero(RowOrder(20, seed=s).rows(0, 20) == 0)[0] for s in range(400)]
    )
    # Uniform on 0..19: mean 9.5, standard error of 400 draws 0.29; 1.5 is five of them.
    assert abs(places.mean() - 9.5) < 1.5
