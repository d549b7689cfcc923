"""Rows of memory-mapped columns to batches.

Shapes: `B` examples, `F` categorical features, `N` rows of the split, `L` ids of a batch.
"""

import itertools
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.data.batch import Batch
from recemb.data.behaviours import Behaviours
from recemb.data.encoded import EncodedRows
from recemb.data.schema import Schema

_Rows = NDArray[np.int64] | slice
_Bag = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32] | None]
"""Values (L,), lengths (B,) and weights (L,) of a multi-hot feature or a history."""


class _MappedBags:
    """The memory-mapped ids of one multi-hot feature."""

    def __init__(self, folder: Path, index: int, num_rows: int, is_weighted: bool) -> None:
        self._offsets = _map(folder / f"bag_{index}.offsets.i64", "<i8", (num_rows + 1,))
        num_values = int(self._offsets[-1])
        self._values = _map(folder / f"bag_{index}.values.i32", "<i4", (num_values,))
        self._weights = (
            _map(folder / f"bag_{index}.weights.f32", "<f4", (num_values,)) if is_weighted else None
        )

    def gather(self, rows: _Rows) -> _Bag:
        """Return values (L,), lengths (B,) and weights (L,) of `rows`."""
        picked: _Rows
        if isinstance(rows, slice):
            ends = self._offsets[rows.start : rows.stop + 1]
            lengths = np.diff(ends)
            picked = slice(int(ends[0]), int(ends[-1]))
        else:
            starts = self._offsets[rows]
            lengths = self._offsets[rows + 1] - starts
            places = np.cumsum(lengths) - lengths
            picked = np.repeat(starts - places, lengths) + np.arange(int(lengths.sum()))
        weights = None if self._weights is None else self._weights[picked]
        return self._values[picked], lengths, weights


class SplitColumns:
    """The memory-mapped columns of one split; only the rows asked for are read.

    Args:
        folder: the split's folder.
        schema: what its columns are.
        num_rows: N.
        behaviours: what histories are made of.
    """

    def __init__(self, folder: Path, schema: Schema, num_rows: int, behaviours: Behaviours) -> None:
        self._schema = schema
        self._behaviours = behaviours
        columns = schema.categorical
        num_one_hot = sum(not c.is_multi_hot for c in columns)
        multi_hot = [c for c in columns if c.is_multi_hot]
        self._labels = _map(folder / "labels.u8", "u1", (num_rows,))
        self._dense = _map(folder / "dense.f32", "<f4", (num_rows, len(schema.dense)))
        self._ids = _map(folder / "ids.i32", "<i4", (num_rows, num_one_hot))
        self._groups = None
        if schema.group is not None:
            self._groups = _map(folder / "groups.i64", "<i8", (num_rows,))
        self._spans = None
        if schema.histories:
            self._spans = _map(folder / "spans.i64", "<i8", (num_rows, 2))
        self._bags = [
            _MappedBags(folder, j, num_rows, c.is_weighted) for j, c in enumerate(multi_hot)
        ]

    def batch(self, rows: _Rows) -> Batch:
        """Return the examples `rows` (B,), in that order; a slice needs start and stop."""
        labels = _rows_of(self._labels, rows).astype(np.float32)
        groups = None
        if self._groups is not None:
            groups = torch.from_numpy(_rows_of(self._groups, rows))
        return Batch(
            dense=torch.from_numpy(_rows_of(self._dense, rows)),
            features=self._features(rows),
            labels=torch.from_numpy(labels),
            groups=groups,
        )

    def _features(self, rows: _Rows) -> KeyedJaggedTensor:
        bags = [bag.gather(rows) for bag in self._bags]
        ids = _rows_of(self._ids, rows)
        if self._spans is None:
            return _features(self._schema, ids, bags)
        lengths, histories = self._behaviours.gather(_rows_of(self._spans, rows))
        return _features(self._schema, ids, [*bags, *((h, lengths, None) for h in histories)])


def batch_of(rows: EncodedRows, schema: Schema, behaviours: Behaviours | None = None) -> Batch:
    """Return encoded rows in memory as one batch.

    Args:
        rows: the rows.
        schema: what their columns are.
        behaviours: what histories are made of; None where the schema has none.
    """
    bags: list[_Bag] = [(bag.values, bag.lengths, bag.weights) for bag in rows.bags]
    if behaviours is not None and rows.spans is not None:
        lengths, histories = behaviours.gather(rows.spans)
        bags += [(h, lengths, None) for h in histories]
    return Batch(
        dense=torch.from_numpy(rows.dense),
        features=_features(schema, rows.ids, bags),
        labels=torch.from_numpy(rows.labels.astype(np.float32)),
        groups=None if rows.groups is None else torch.from_numpy(rows.groups),
    )


def _features(
    schema: Schema, one_hot: NDArray[np.int32], bags: Iterable[_Bag]
) -> KeyedJaggedTensor:
    """Return the ids of all features, given those of the one-hot ones (B, F) and the others."""
    names, num_examples = list(schema.feature_names), one_hot.shape[0]
    if not schema.histories and not any(c.is_multi_hot for c in schema.categorical):
        values = np.empty((len(names), num_examples), np.int64)
        values[...] = one_hot.T  # (F, B), the order of a KeyedJaggedTensor
        lengths, offsets = _ones_and_offsets(len(names) * num_examples)
        return _keyed(names, torch.from_numpy(values).view(-1), lengths, offsets, num_examples)
    parts = _Parts(num_examples, any(c.is_weighted for c in schema.categorical))
    ids, rest = iter(one_hot.T), iter(bags)
    for column in schema.categorical:
        if column.is_multi_hot:
            parts.append(*next(rest))
        else:
            parts.append(next(ids), None, None)
    for _ in schema.histories:
        parts.append(*next(rest))
    return parts.keyed(names)


class _Parts:
    """The ids of a batch, feature after feature, of which some are multi-hot."""

    def __init__(self, num_examples: int, is_weighted: bool) -> None:
        self._num_examples = num_examples
        self._is_weighted = is_weighted
        self._values: list[NDArray[np.int32]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._weights: list[NDArray[np.float32]] = []

    def append(
        self,
        values: NDArray[np.int32],
        lengths: NDArray[np.int64] | None,
        weights: NDArray[np.float32] | None,
    ) -> None:
        """Add a feature; without lengths each example has one id, without weights they are 1."""
        self._values.append(values)
        self._lengths.append(np.ones(self._num_examples, np.int64) if lengths is None else lengths)
        if self._is_weighted:
            self._weights.append(np.ones(len(values), np.float32) if weights is None else weights)

    def keyed(self, names: Sequence[str]) -> KeyedJaggedTensor:
        """Return the features under `names`."""
        values = np.concatenate(self._values, dtype=np.int64)
        lengths = np.concatenate(self._lengths)
        length_per_key = [len(v) for v in self._values]
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return KeyedJaggedTensor(
            keys=list(names),
            values=torch.from_numpy(values),
            weights=torch.from_numpy(np.concatenate(self._weights)) if self._is_weighted else None,
            lengths=torch.from_numpy(lengths),
            offsets=torch.from_numpy(offsets),
            stride=self._num_examples,
            length_per_key=length_per_key,
            offset_per_key=list(itertools.accumulate(length_per_key, initial=0)),
        )


def _keyed(
    names: list[str], values: Tensor, lengths: Tensor, offsets: Tensor, num_examples: int
) -> KeyedJaggedTensor:
    """Return one-hot features; all that TorchRec would compute later is handed to it."""
    return KeyedJaggedTensor(
        keys=names,
        values=values,
        lengths=lengths,
        offsets=offsets,
        stride=num_examples,
        length_per_key=[num_examples] * len(names),
        offset_per_key=[k * num_examples for k in range(len(names) + 1)],
    )


@lru_cache(maxsize=8)
def _ones_and_offsets(num_values: int) -> tuple[Tensor, Tensor]:
    """Return the lengths and offsets of one-hot features, shared by all batches of a size."""
    return torch.ones(num_values, dtype=torch.int64), torch.arange(num_values + 1)


def _rows_of(column: NDArray[Any], rows: _Rows) -> NDArray[Any]:
    """Return a copy of `column[rows]`; take copies a row at a time, which indexing does not."""
    return column[rows].copy() if isinstance(rows, slice) else column.take(rows, axis=0)


def _map(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the file as a read-only array that is not in memory until it is read."""
    if 0 in shape:
        return np.empty(shape, dtype)
    # A plain view of the map: np.memmap's subclass adds microseconds to each indexing.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=shape))
