"""Which rows are for training, which for validation and which for the test.

Shapes: `n` rows of a chunk.
"""

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recemb.data.column import Kind
from recemb.data.manifest import SPLITS
from recemb.data.source import Chunk, OnBadLine, Source
from recemb.ids.hashing import mix64

LEFT_OUT = 255
"""The code of rows in no split; the codes of splits are their places in `SPLITS`."""

Codes = NDArray[np.uint8]


class Split(abc.ABC):
    """A rule that gives each row its split."""

    def kinds(self) -> dict[str, Kind]:
        """Return the raw columns that the rule reads."""
        return {}

    def fit(self, source: Source, on_bad_line: OnBadLine) -> None:  # noqa: B027 (most need nothing)
        """Read what the rule must know of the whole source, if anything."""

    @abc.abstractmethod
    def assign(self, chunk: Chunk) -> Codes:
        """Return the code of each row, (n,)."""

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what the rule depends on; plain JSON types."""


class ByFile(Split):
    """Each file belongs to one split.

    Args:
        files: the files of each split, by the split's name.

    Raises:
        ValueError: on a split's name that is not train, val or test, or without a training file.
    """

    def __init__(self, files: Mapping[str, Sequence[Path]]) -> None:
        _check_splits(files)
        self._codes = {f: SPLITS.index(s) for s, paths in files.items() for f in paths}

    def assign(self, chunk: Chunk) -> Codes:
        """Return the code of the chunk's file for each row."""
        return np.full(chunk.table.num_rows, self._codes[chunk.file], np.uint8)

    def settings(self) -> dict[str, Any]:
        """Return the split of each file, in order."""
        return {"rule": "file", "splits": [SPLITS[c] for c in self._codes.values()]}


class ByValue(Split):
    """A column's value decides; rows with other values are left out.

    Args:
        column: the raw column.
        values: the values of each split, by the split's name; compared as text.

    Raises:
        ValueError: on a split's name that is not train, val or test, or without training values.
    """

    def __init__(self, column: str, values: Mapping[str, Sequence[str | int]]) -> None:
        _check_splits(values)
        self._column = column
        self._values = {split: [str(v) for v in given] for split, given in values.items()}

    def kinds(self) -> dict[str, Kind]:
        """Return the column."""
        return {self._column: "string"}

    def assign(self, chunk: Chunk) -> Codes:
        """Return the code that each row's value calls for."""
        array = chunk.table.column(self._column).combine_chunks().cast(pa.string())
        codes = np.full(len(array), LEFT_OUT, np.uint8)
        for split, values in self._values.items():
            is_in = pc.is_in(array, value_set=pa.array(values, pa.string()))
            codes[is_in.to_numpy(zero_copy_only=False)] = SPLITS.index(split)
        return codes

    def settings(self) -> dict[str, Any]:
        """Return column and values."""
        return {"rule": "value", "column": self._column, "values": self._values}


class ByRatio(Split):
    """Each row is drawn into a split, by a hash of the seed and its line number.

    The sizes come out at random, close to the ratios; a row's split depends on neither the other
    rows nor the block size.

    Args:
        val: share of the rows for validation.
        test: share of the rows for the test.
        seed: of the draw.

    Raises:
        ValueError: if the shares are negative or leave nothing for training.
    """

    def __init__(self, *, val: float, test: float, seed: int = 0) -> None:
        _check_shares(val, test)
        self._val, self._test, self._seed = val, test, seed

    def assign(self, chunk: Chunk) -> Codes:
        """Return a code drawn for each row."""
        salt = mix64(np.array([self._seed], np.int64).view(np.uint64))
        draw = mix64(chunk.rows.view(np.uint64) ^ salt) / 2.0**64
        codes = np.zeros(len(draw), np.uint8)
        codes[draw < self._val + self._test] = SPLITS.index("test")
        codes[draw < self._val] = SPLITS.index("val")
        return codes

    def settings(self) -> dict[str, Any]:
        """Return shares and seed."""
        return {"rule": "ratio", "val": self._val, "test": self._test, "seed": self._seed}


class ByTime(Split):
    """The last rows are for the test, those before for validation, the rest for training.

    Rows of the same time stay together, in the later split. One value per row is held in memory
    while the limits are found (8 bytes), unless rows are in order of time in the files already.

    Args:
        val: share of the rows for validation.
        test: share of the rows for the test.
        column: numbers or timestamps; None takes the order of the lines in the files.

    Raises:
        ValueError: if the shares are negative or leave nothing for training.
    """

    def __init__(self, *, val: float, test: float, column: str | None = None) -> None:
        _check_shares(val, test)
        self._val, self._test, self._column = val, test, column
        self._limits = (np.inf, np.inf)

    def kinds(self) -> dict[str, Kind]:
        """Return the column."""
        return {} if self._column is None else {self._column: "string"}

    def fit(self, source: Source, on_bad_line: OnBadLine) -> None:
        """Find the times at which validation and test begin."""
        train_share = 1.0 - self._val - self._test
        if self._column is None:
            num_rows = source.num_rows()
            self._limits = (round(train_share * num_rows), round((1.0 - self._test) * num_rows))
            return
        chunks = source.chunks(self.kinds(), on_bad_line)
        times = np.sort(np.concatenate([self._times(c) for c in chunks]))
        times = np.append(times, np.inf)
        val_start, test_start = (
            float(times[round(share * (len(times) - 1))])
            for share in (train_share, 1.0 - self._test)
        )
        self._limits = (val_start, test_start)

    def assign(self, chunk: Chunk) -> Codes:
        """Return the code that each row's time calls for."""
        times = chunk.rows if self._column is None else self._times(chunk)
        codes = np.zeros(len(times), np.uint8)
        codes[times >= self._limits[0]] = SPLITS.index("val")
        codes[times >= self._limits[1]] = SPLITS.index("test")
        return codes

    def settings(self) -> dict[str, Any]:
        """Return shares and column."""
        return {"rule": "time", "val": self._val, "test": self._test, "column": self._column}

    def _times(self, chunk: Chunk) -> NDArray[np.float64]:
        assert self._column is not None
        array = chunk.table.column(self._column).combine_chunks()
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        try:
            if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
                array = _numbers_or_timestamps(array)
            if pa.types.is_temporal(array.type):
                array = array.cast(pa.int64())
            times = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"{chunk.file}: column '{self._column}' must hold numbers or timestamps to split "
                f"by time, but {error}; correct the file or split in another way"
            ) from error
        if np.isnan(times).any():
            row = int(np.flatnonzero(np.isnan(times))[0])
            raise ValueError(
                f"{chunk.file}:{chunk.lines[row]}: column '{self._column}' is missing, but the "
                "split is by time; correct the line or split in another way"
            )
        return np.asarray(times, np.float64)


def _numbers_or_timestamps(array: pa.Array) -> pa.Array:
    try:
        return array.cast(pa.float64())
    except pa.ArrowInvalid:
        return array.cast(pa.timestamp("us"))


def _check_splits(given: Mapping[str, Sequence[Any]]) -> None:
    if unknown := [s for s in given if s not in SPLITS]:
        raise ValueError(f"split: {unknown} is not among {list(SPLITS)}")
    if not given.get("train"):
        raise ValueError("split: nothing is given for 'train'; training needs rows")


def _check_shares(val: float, test: float) -> None:
    if val < 0 or test < 0 or val + test >= 1:
        raise ValueError(
            f"split: val and test must be at least 0 and below 1 together, got {val} and {test}"
        )
