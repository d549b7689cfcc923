"""The order in which an epoch reads rows, and who reads them.

The order is a pure function of (number of rows, seed, epoch): any part of it can be computed
without the parts before, so a resumed run goes on exactly where it stopped.

Up to `EXACT_ROWS` rows the shuffle is an exact permutation of the rows. Above, it works in bounded
memory and reads the disk in runs: blocks of `BLOCK_ROWS` contiguous rows are permuted, and rows are
permuted inside windows of `WINDOW_ROWS` rows, that is, of 32,768 blocks from anywhere in the file.
Memory: 8 bytes per row of a window (16 MiB), and 8 bytes per block.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

EXACT_ROWS = 1 << 21
WINDOW_ROWS = 1 << 21
BLOCK_ROWS = 64


class RowOrder:
    """The order of the rows of one epoch.

    Args:
        num_rows: number of rows.
        seed: at least 0.
        epoch: at least 0.
        shuffle: whether to permute; otherwise the order is that of the files.
        block_rows: contiguous rows that stay in one window; None is 1 for up to `EXACT_ROWS` rows
            and `BLOCK_ROWS` above.
        window_rows: rows permuted together; None is all rows for up to `EXACT_ROWS`, and
            `WINDOW_ROWS` above.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        block_rows: int | None = None,
        window_rows: int | None = None,
    ) -> None:
        if seed < 0 or epoch < 0:
            raise ValueError(f"row order: seed and epoch must be at least 0, got {seed}, {epoch}")
        is_small = num_rows <= EXACT_ROWS
        self.num_rows = num_rows
        self.shuffle = shuffle
        self.block_rows = block_rows or (1 if is_small else BLOCK_ROWS)
        window = window_rows or (max(num_rows, 1) if is_small else WINDOW_ROWS)
        self._window_blocks = max(1, window // self.block_rows)
        self._key = (seed, epoch)
        self._cached: tuple[int, NDArray[np.int64]] | None = None

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the row numbers at places `start` to `stop` of the order, (stop - start,)."""
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        parts = []
        window = int(np.searchsorted(self._window_starts, start, side="right")) - 1
        while start < stop:
            first, last = (int(x) for x in self._window_starts[window : window + 2])
            end = min(stop, last)
            parts.append(self._window(window)[start - first : end - first])
            start, window = end, window + 1
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    @cached_property
    def _blocks(self) -> NDArray[np.int64]:
        num_blocks = -(-self.num_rows // self.block_rows)
        blocks: NDArray[np.int64] = np.random.default_rng([*self._key, 0]).permutation(num_blocks)
        return blocks

    @cached_property
    def _window_starts(self) -> NDArray[np.int64]:
        """Return where each window begins, and the end: (number of windows + 1,)."""
        num_blocks = len(self._blocks)
        sizes = np.full(num_blocks, self.block_rows, np.int64)
        if num_blocks:
            short = int(np.flatnonzero(self._blocks == num_blocks - 1)[0])
            sizes[short] = self.num_rows - (num_blocks - 1) * self.block_rows
        bounds = np.append(np.arange(0, num_blocks, self._window_blocks), num_blocks)
        starts: NDArray[np.int64] = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        window_starts: NDArray[np.int64] = starts[bounds]
        return window_starts

    def _window(self, window: int) -> NDArray[np.int64]:
        """Return the permuted rows of one window, keeping the last one made."""
        if self._cached is None or self._cached[0] != window:
            first = window * self._window_blocks
            blocks = self._blocks[first : first + self._window_blocks]
            rows = (blocks[:, None] * self.block_rows + np.arange(self.block_rows)).ravel()
            rows = rows[rows < self.num_rows]
            if self.block_rows > 1:
                np.random.default_rng([*self._key, 1, window]).shuffle(rows)
            self._cached = (window, rows)
        return self._cached[1]


class Shares:
    """Which places of the order each rank reads at each step.

    A step is a batch of `batch_size` rows, the same whatever the number of ranks, and the ranks
    share it out in order; so every row is read once, by one rank, and all ranks take the same
    number of steps. A last batch may be smaller, and a rank's share of it empty. With `drop_last`
    it is left out.

    Raises:
        ValueError: if a size is below 1, or the rank is out of range.
    """

    def __init__(
        self, num_rows: int, *, batch_size: int, rank: int, world_size: int, drop_last: bool
    ) -> None:
        if batch_size < 1 or world_size < 1:
            raise ValueError(
                f"batches: batch_size and world_size must be at least 1, "
                f"got {batch_size}, {world_size}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"batches: rank must be in [0, {world_size}), got {rank}")
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._num_rows = num_rows
        self.num_steps = num_rows // batch_size if drop_last else -(-num_rows // batch_size)

    def bounds(self, step: int) -> tuple[int, int]:
        """Return the places (start, stop) of this rank's share at `step`."""
        first = step * self._batch_size
        size = min(self._batch_size, self._num_rows - first)
        start, stop = (size * r // self._world_size for r in (self._rank, self._rank + 1))
        return first + start, first + stop
