"""Encoded rows in memory: what the encoders and generators hand to the writer.

Shapes: `n` rows, `L` ids of one multi-hot feature over those rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recemb.data.schema import Schema


@dataclass(frozen=True, kw_only=True)
class Bags:
    """The ids of one multi-hot feature.

    Attributes:
        values: (L,) int32, the ids of all rows, row after row.
        lengths: (n,) int64, how many ids each row has.
        weights: (L,) float32, one weight per id, or None.
    """

    values: NDArray[np.int32]
    lengths: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """Some rows in the form in which they are stored.

    Attributes:
        labels: (n,) uint8, 0 or 1.
        dense: (n, num_dense) float32.
        ids: (n, number of one-hot features) int32, in the schema's order.
        bags: one for each multi-hot feature, in the schema's order.
        groups: (n,) int64, or None.
        spans: (n, 2) int64, where each row's history begins and ends among the behaviours; None
            where the schema has no histories.
    """

    labels: NDArray[np.uint8]
    dense: NDArray[np.float32]
    ids: NDArray[np.int32]
    bags: tuple[Bags, ...] = ()
    groups: NDArray[np.int64] | None = None
    spans: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def check(self, schema: Schema) -> None:
        """Assert that the shapes fit `schema` and that every id is in range."""
        n = len(self)
        one_hot = [c for c in schema.categorical if not c.is_multi_hot]
        multi_hot = [c for c in schema.categorical if c.is_multi_hot]
        assert self.dense.shape == (n, len(schema.dense)), self.dense.shape
        assert self.ids.shape == (n, len(one_hot)), self.ids.shape
        assert len(self.bags) == len(multi_hot)
        assert (self.groups is None) == (schema.group is None)
        assert (self.spans is None) == (not schema.histories)
        if self.spans is not None:
            assert self.spans.shape == (n, 2)
            assert bool((self.spans[:, 0] <= self.spans[:, 1]).all())
        if n and one_hot:
            limits = np.array([c.num_embeddings for c in one_hot])
            assert bool((self.ids.min(axis=0) >= 0).all())
            assert bool((self.ids.max(axis=0) < limits).all())
        for column, bag in zip(multi_hot, self.bags, strict=True):
            assert bag.lengths.shape == (n,)
            assert int(bag.lengths.sum()) == bag.values.shape[0]
            assert (bag.weights is not None) == column.is_weighted
            if bag.values.size:
                assert int(bag.values.min()) >= 0
                assert int(bag.values.max()) < column.num_embeddings
