"""Checked rows to ids and floats.

Shapes: `n` rows, `U` distinct values of a column in a chunk. Work per row is an index into a
chunk's dictionary; hashing and vocabularies see each distinct value of a chunk once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recemb.data.column import CategoricalColumn, Columns, DenseColumn
from recemb.data.encoded import Bags, EncodedRows
from recemb.data.schema import Categorical, Schema
from recemb.data.transforms import signed_log, squared_log_buckets, standardised
from recemb.ids.hashing import hash_rows, hash_seed, hash_strings
from recemb.ids.statistics import KeyCounts, Moments
from recemb.ids.vocabulary import Vocabulary

MISSING_KEY = -(2**63)
"""The key of a missing value, where missing is one more value."""


@dataclass(frozen=True)
class KeyedColumn:
    """A column as keys.

    Attributes:
        keys: (U + 1,) the distinct keys; the last stands for missing.
        places: (n,) where each row's key is in `keys`.
    """

    keys: NDArray[np.int64]
    places: NDArray[np.int64]

    def of_rows(self) -> NDArray[np.int64]:
        """Return the key (n,) of each row."""
        return self.keys[self.places]


def keyed(values: pa.Array) -> KeyedColumn:
    """Return strings (plain or in a dictionary) or integers as keys."""
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    distinct = values.dictionary
    if pa.types.is_integer(distinct.type):
        keys = distinct.cast(pa.int64()).to_numpy(zero_copy_only=False)
    else:
        keys = hash_strings(distinct)
    places = values.indices
    if places.null_count:
        places = places.fill_null(len(distinct))
    return KeyedColumn(
        np.append(keys, MISSING_KEY), places.to_numpy(zero_copy_only=False).astype(np.int64)
    )


def _flat(column: CategoricalColumn, table: pa.Table) -> pa.Array:
    """Return the column's values, those of lists one after another."""
    values = table.column(column.raw).combine_chunks()
    if column.is_multi_hot:
        return values.flatten()
    if column.transform == "buckets":
        buckets = squared_log_buckets(_floats(values))
        return pa.array(buckets, mask=values.is_null().to_numpy(zero_copy_only=False))
    return values


def _floats(values: pa.Array) -> NDArray[np.float64]:
    """Return numbers as float64, NaN where missing."""
    numbers: NDArray[np.float64] = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


class Statistics:
    """What vocabularies and standardisation need to know of the training split."""

    def __init__(self, columns: Columns) -> None:
        self.counts = {c.name: KeyCounts() for c in columns.categorical if _is_counted(c)}
        self.moments = {d.name: Moments() for d in columns.dense if d.transform == "standardise"}

    @property
    def is_empty(self) -> bool:
        """Return whether there is nothing to gather."""
        return not self.counts and not self.moments

    def merge(self, other: "Statistics") -> None:
        """Add what `other` gathered."""
        for name, counts in other.counts.items():
            self.counts[name].add(*counts.result())
        for name, moments in other.moments.items():
            self.moments[name].merge(moments)


def _is_counted(column: CategoricalColumn) -> bool:
    return column.encoding == "vocabulary"


def gather(columns: Columns, table: pa.Table) -> Statistics:
    """Return the statistics of checked rows."""
    found = Statistics(columns)
    for c in columns.categorical:
        if _is_counted(c):
            column = keyed(_flat(c, table))
            counts = np.bincount(column.places, minlength=len(column.keys))
            if c.missing == "oov":
                counts[-1] = 0
            occurs = counts > 0
            found.counts[c.name].add(column.keys[occurs], counts[occurs])
    for d in columns.dense:
        if d.transform == "standardise":
            values = _floats(table.column(d.raw).combine_chunks())
            found.moments[d.name].add(values[~np.isnan(values)])
    return found


class RowEncoder:
    """Turns checked rows into encoded rows.

    Args:
        columns: what to make.
        vocabularies: one for each feature with encoding "vocabulary".
        moments: (mean, standard deviation) for each standardised feature.
        seed: of the hashes of features with encoding "hash".

    Attributes:
        columns: what it makes.
        vocabularies: as given.
        moments: as given.
        seed: as given.
    """

    def __init__(
        self,
        columns: Columns,
        *,
        vocabularies: Mapping[str, Vocabulary],
        moments: Mapping[str, tuple[float, float]],
        seed: int,
    ) -> None:
        self.columns = columns
        self.vocabularies = dict(vocabularies)
        self.moments = dict(moments)
        self.seed = seed

    @classmethod
    def fitted(cls, columns: Columns, statistics: Statistics, seed: int) -> Self:
        """Return the encoder that the training split's statistics call for."""
        vocabularies = {
            c.name: Vocabulary.from_counts(
                *statistics.counts[c.name].result(),
                min_count=c.min_count,
                max_embeddings=c.num_embeddings,
            )
            for c in columns.categorical
            if _is_counted(c)
        }
        moments = {name: (m.mean, m.std) for name, m in statistics.moments.items()}
        return cls(columns, vocabularies=vocabularies, moments=moments, seed=seed)

    @property
    def schema(self) -> Schema:
        """Return the columns of the encoded rows."""
        return Schema(
            dense=tuple(d.name for d in self.columns.dense),
            categorical=tuple(
                Categorical(
                    name=c.name,
                    num_embeddings=self._num_embeddings(c),
                    is_multi_hot=c.is_multi_hot,
                    is_weighted=c.weights is not None,
                )
                for c in self.columns.categorical
            ),
            label=self.columns.label.name,
            group=self.columns.group,
        )

    def encode(self, table: pa.Table) -> EncodedRows:
        """Return checked rows (see `recemb.data.check`) as they are stored."""
        n, columns = table.num_rows, self.columns
        dense = np.empty((n, len(columns.dense)), np.float32)
        for j, d in enumerate(columns.dense):
            dense[:, j] = self._dense(d, table)
        one_hot = [c for c in columns.categorical if not c.is_multi_hot]
        ids = np.empty((n, len(one_hot)), np.int32)
        for j, c in enumerate(one_hot):
            ids[:, j] = self._ids(c, _flat(c, table))
        groups = None
        if columns.group is not None:
            groups = keyed(table.column(columns.group).combine_chunks()).of_rows()
        return EncodedRows(
            labels=self._labels(table),
            dense=dense,
            ids=ids,
            bags=tuple(self._bags(c, table) for c in columns.categorical if c.is_multi_hot),
            groups=groups,
        )

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the vocabularies into `folder` and return the rest, plain JSON types."""
        for i, c in enumerate(self.columns.categorical):
            if c.name in self.vocabularies:
                self.vocabularies[c.name].save(folder / f"{i}.keys.i64")
        return {
            "columns": self.columns.to_dict(),
            "moments": {name: list(pair) for name, pair in self.moments.items()},
            "seed": self.seed,
        }

    @classmethod
    def load(cls, folder: Path, state: Mapping[str, Any]) -> Self:
        """Return the encoder that `save` wrote into `folder`, with the `state` it returned."""
        columns = Columns.from_dict(state["columns"])
        vocabularies = {
            c.name: Vocabulary.load(folder / f"{i}.keys.i64")
            for i, c in enumerate(columns.categorical)
            if _is_counted(c)
        }
        moments = {name: (float(m), float(s)) for name, (m, s) in state["moments"].items()}
        return cls(columns, vocabularies=vocabularies, moments=moments, seed=state["seed"])

    def _num_embeddings(self, column: CategoricalColumn) -> int:
        if column.name in self.vocabularies:
            return self.vocabularies[column.name].num_embeddings
        assert column.num_embeddings is not None
        return column.num_embeddings

    def _labels(self, table: pa.Table) -> NDArray[np.uint8]:
        label = self.columns.label
        values = _floats(table.column(label.name).combine_chunks())
        return (values >= (1.0 if label.threshold is None else label.threshold)).astype(np.uint8)

    def _dense(self, column: DenseColumn, table: pa.Table) -> NDArray[np.float64]:
        values = _floats(table.column(column.raw).combine_chunks())
        if column.transform == "log":
            values = signed_log(values)
        elif column.transform == "standardise":
            values = standardised(values, *self.moments[column.name])
        return np.nan_to_num(values, nan=0.0)

    def _ids(self, column: CategoricalColumn, values: pa.Array) -> NDArray[np.int32]:
        if column.encoding == "ids":
            raw: NDArray[np.int32] = values.to_numpy(zero_copy_only=False).astype(np.int32)
            return raw
        found = keyed(values)
        if column.encoding == "hash":
            rows = hash_rows(
                found.keys, hash_seed(self.seed, column.name), self._num_embeddings(column) - 1
            )
            ids = (rows + 1).astype(np.int32)
        else:
            ids = self.vocabularies[column.name].encode(found.keys)
        if column.missing == "oov":
            ids[-1] = 0
        return ids[found.places]

    def _bags(self, column: CategoricalColumn, table: pa.Table) -> Bags:
        lists = table.column(column.raw).combine_chunks()
        weights = None
        if column.weights is not None:
            flat = table.column(column.weights).combine_chunks().flatten()
            weights = flat.to_numpy(zero_copy_only=False)
        return Bags(
            values=self._ids(column, lists.flatten()),
            lengths=pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64),
            weights=weights,
        )
