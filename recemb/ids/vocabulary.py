"""A vocabulary: the keys that have an id of their own.

Id 0 stands for everything else (rare, unseen, missing). Ids from 1 on go to the keys in descending
order of their training count, keys of equal count in ascending order, so the result does not depend
on the order of the rows.

Shapes: `N` keys to encode, `K` keys of the vocabulary.
"""

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]


class Vocabulary:
    """Keys to ids.

    Args:
        keys: (K,) int64, distinct; keys[i] has id i + 1.

    Raises:
        ValueError: if a key occurs twice.
    """

    def __init__(self, keys: Keys) -> None:
        self.keys = np.ascontiguousarray(keys, np.int64)
        order = np.argsort(self.keys, kind="stable")
        self._sorted = self.keys[order]
        self._ids = (order + 1).astype(np.int32)
        repeated = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if repeated.size:
            raise ValueError(
                f"vocabulary: key {self._sorted[repeated[0]]} occurs twice; keys must be distinct"
            )

    @classmethod
    def from_counts(
        cls,
        keys: Keys,
        counts: NDArray[np.int64],
        *,
        min_count: int = 1,
        max_embeddings: int | None = None,
    ) -> Self:
        """Return the vocabulary of the keys that occur at least `min_count` times.

        Args:
            keys: (K,) distinct.
            counts: (K,) how often each occurs.
            min_count: at least 1.
            max_embeddings: keep only the most frequent, so that `num_embeddings` is at most this.

        Raises:
            ValueError: if `min_count` or `max_embeddings` is below 1.
        """
        if min_count < 1:
            raise ValueError(f"vocabulary: min_count must be at least 1, got {min_count}")
        if max_embeddings is not None and max_embeddings < 1:
            raise ValueError(f"vocabulary: max_embeddings must be at least 1, got {max_embeddings}")
        is_kept = counts >= min_count
        keys, counts = keys[is_kept], counts[is_kept]
        order = np.lexsort((keys, -counts))
        limit = len(keys) if max_embeddings is None else max_embeddings - 1
        return cls(keys[order[:limit]])

    @property
    def num_embeddings(self) -> int:
        """Return the number of ids, id 0 included."""
        return len(self.keys) + 1

    def encode(self, keys: Keys) -> NDArray[np.int32]:
        """Return the id of each key (N,), 0 for keys outside the vocabulary."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int32)
        places = np.searchsorted(self._sorted, keys)
        np.minimum(places, len(self._sorted) - 1, out=places)
        return np.where(self._sorted[places] == keys, self._ids[places], np.int32(0))

    def save(self, path: Path) -> None:
        """Write the keys in the order of their ids, little-endian int64."""
        self.keys.astype("<i8").tofile(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the vocabulary that `save` wrote."""
        return cls(np.fromfile(path, "<i8").astype(np.int64))
