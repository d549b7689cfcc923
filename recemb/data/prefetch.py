"""Work done ahead in a background thread."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def prefetch(items: Iterable[T], depth: int) -> Generator[T]:
    """Yield `items`, up to `depth` of them made ahead by one background thread.

    An exception of `items` is raised at its place. Closing the generator, or letting go of it,
    stops the thread. With depth 0 there is no thread.
    """
    if depth < 1:
        yield from items
        return
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    thread = threading.Thread(
        target=_fill, args=(items, ready, stop), name="recemb-prefetch", daemon=True
    )
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stop.set()
        thread.join()


def _fill(items: Iterable[Any], ready: "queue.Queue[Any]", stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put(item, ready, stop):
                return
        _put(_END, ready, stop)
    except BaseException as error:  # the consumer raises it
        _put(_Failure(error), ready, stop)


def _put(item: object, ready: "queue.Queue[Any]", stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.05)
        except queue.Full:
            continue
        return True
    return False


def ordered_map(work: Callable[[S], T], items: Iterable[S], num_threads: int) -> Iterator[T]:
    """Yield `work(item)` for each item in order, several at a time in threads.

    At most `num_threads` + 1 results wait, so memory is bounded by that many items and results.
    """
    if num_threads < 2:
        yield from map(work, items)
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="recemb-work") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
