"""Time on a GPU: CUDA events, eager and as a replayed graph, and the machine's ceilings."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of each repeat; none in a dry run."""

    milliseconds: Sequence[float]

    def quantile(self, q: int) -> float:
        """Return a percentile, in milliseconds."""
        if len(self.milliseconds) == 1:
            return self.milliseconds[0]
        return statistics.quantiles(self.milliseconds, n=100, method="inclusive")[q - 1]


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How often to repeat, and where.

    Attributes:
        device: "cuda", or "cpu" for a dry run, which runs everything once and times nothing.
        repeats: measured calls.
        warmup: calls before.
    """

    device: str
    repeats: int = 50
    warmup: int = 5

    def eager(
        self, begin: Callable[[int], Any], finish: Callable[[int, Any], Any], num_batches: int
    ) -> Timing | None:
        """Time `finish(batch, begin(batch))`, without `begin`; None in a dry run.

        Launches are not awaited, so the time of a short kernel is that of its launch.
        """
        if self.device == "cpu":
            finish(0, begin(0))
            return None
        for turn in range(self.warmup):
            finish(turn % num_batches, begin(turn % num_batches))
        torch.cuda.synchronize()
        pairs = []
        for turn in range(self.repeats):
            prepared = begin(turn % num_batches)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = finish(turn % num_batches, prepared)
            end.record()
            pairs.append((start, end))
            del prepared, result
        torch.cuda.synchronize()
        return Timing(milliseconds=[a.elapsed_time(b) for a, b in pairs])

    def graph(self, run: Callable[[int], Any], num_batches: int) -> Timing | None:
        """Time the replay of `run`, one captured graph per batch; None in a dry run.

        Raises:
            RuntimeError: if `run` cannot be captured, because it waits for the host, say.
        """
        if self.device == "cpu":
            return None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run(0)
        torch.cuda.current_stream().wait_stream(stream)
        graphs = []
        for batch in range(num_batches):
            graph = torch.cuda.CUDAGraph()
            # Graphs that run one after another may share memory.
            with torch.cuda.graph(graph, pool=graphs[0].pool() if graphs else None):
                run(batch)
            graphs.append(graph)
        return self.eager(lambda i: None, lambda i, _: graphs[i].replay(), num_batches)


def copy_ceiling(clock: Clock) -> float | None:
    """Return GB/s, read and written, of copying 2 GB; None in a dry run."""
    size = 64 if clock.device == "cpu" else 2**29
    source = torch.ones(size, device=clock.device)
    target = torch.empty_like(source)
    timing = clock.eager(lambda i: None, lambda i, _: target.copy_(source), 1)
    return None if timing is None else 2 * source.nbytes / timing.quantile(50) / 1e6


def gather_ceiling(clock: Clock, row_bytes: int) -> float | None:
    """Return GB/s, read and written, of torch.index_select of random rows from 8 GB."""
    dry = clock.device == "cpu"
    rows = 16 if dry else 8 * 2**30 // row_bytes
    source = torch.ones(rows, row_bytes // 4, device=clock.device)
    count = 8 if dry else 2**30 // row_bytes
    picks = [torch.randint(rows, (count,), device=clock.device) for _ in range(2)]
    target = torch.empty(count, row_bytes // 4, device=clock.device)
    timing = clock.eager(
        lambda i: None, lambda i, _: torch.index_select(source, 0, picks[i], out=target), 2
    )
    return None if timing is None else 2 * target.nbytes / timing.quantile(50) / 1e6
