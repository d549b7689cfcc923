"""Counts and moments that are gathered chunk by chunk.

Shapes: `N` values of a chunk, `K` distinct keys.
"""

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]
Counts = NDArray[np.int64]


class KeyCounts:
    """How often each key occurs.

    New counts wait unmerged until there are as many of them as merged ones, so that n chunks cost
    O(K log n) merges. Memory: at most about 64 bytes per distinct key.
    """

    def __init__(self) -> None:
        self._keys: Keys = np.empty(0, np.int64)
        self._counts: Counts = np.empty(0, np.int64)
        self._waiting: list[tuple[Keys, Counts]] = []
        self._num_waiting = 0

    def add(self, keys: Keys, counts: Counts) -> None:
        """Add `counts` (N,) to those of `keys` (N,); keys may repeat."""
        self._waiting.append((keys, counts))
        self._num_waiting += len(keys)
        if self._num_waiting > max(len(self._keys), 1 << 16):
            self._merge()

    def result(self) -> tuple[Keys, Counts]:
        """Return the distinct keys in ascending order (K,) and their counts (K,)."""
        self._merge()
        return self._keys, self._counts

    def _merge(self) -> None:
        if not self._waiting:
            return
        keys = np.concatenate([self._keys, *(k for k, _ in self._waiting)])
        counts = np.concatenate([self._counts, *(c for _, c in self._waiting)])
        self._waiting, self._num_waiting = [], 0
        order = np.argsort(keys)
        keys = keys[order]
        is_first = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
        starts = np.flatnonzero(is_first)
        self._keys = keys[starts]
        self._counts = np.add.reduceat(counts[order], starts) if len(starts) else counts[:0]


class Moments:
    """Mean and standard deviation, merged by Chan's update, which is stable."""

    def __init__(self) -> None:
        self.num_values = 0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Add finite `values` (N,)."""
        if len(values):
            other = Moments()
            other.num_values, other.mean = len(values), float(values.mean())
            other._squares = float(np.square(values - other.mean).sum())
            self.merge(other)

    def merge(self, other: "Moments") -> None:
        """Add the values that `other` was given."""
        total = self.num_values + other.num_values
        if not total:
            return
        shift = other.mean - self.mean
        self._squares += other._squares
        self._squares += shift * shift * self.num_values * other.num_values / total
        self.mean += shift * other.num_values / total
        self.num_values = total

    @property
    def std(self) -> float:
        """Return the standard deviation of the population; 0 without values."""
        return float(np.sqrt(self._squares / self.num_values)) if self.num_values else 0.0
