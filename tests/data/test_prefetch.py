"""Work ahead keeps order, errors and a tidy end."""

import threading
import time
from collections.abc import Iterator

import pytest

from recemb.data.prefetch import ordered_map, prefetch


def _num_threads(prefix: str) -> int:
    return sum(t.name.startswith(prefix) for t in threading.enumerate())


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_come_in_order(depth: int) -> None:
    assert list(prefetch(range(50), depth)) == list(range(50))


def test_closing_stops_the_thread() -> None:
    before = _num_threads("recemb-prefetch")
    items = prefetch(iter(int, 1), 2)
    assert next(iter(items)) == 0
    assert _num_threads("recemb-prefetch") == before + 1
    items.close()
    assert _num_threads("recemb-prefetch") == before


def test_error_is_raised_at_its_place() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    items = prefetch(broken(), 2)
    assert next(iter(items)) == 1
    with pytest.raises(KeyError, match="lost"):
        next(iter(items))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_mapped_items_come_in_order_whatever_takes_longest(num_threads: int) -> None:
    def work(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return i * i

    assert list(ordered_map(work, range(30), num_threads)) == [i * i for i in range(30)]


def test_mapping_takes_no_more_items_than_it_works_on() -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    results = ordered_map(lambda i: i, items(), 3)
    next(iter(results))
    assert len(taken) <= 5
    results.close()


def test_error_in_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda i: 1 // i, [1, 0, 1], 2))
