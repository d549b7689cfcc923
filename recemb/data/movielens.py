"""MovieLens: ratings of films, with what is known of users and films, as a click-like label.

The publisher's files are read as they are, each release by its file names: 100K (`u.data`,
`u.user`, `u.item`), 1M and 10M (`ratings.dat`, `movies.dat`, `users.dat`), 20M, 25M and latest
(`ratings.csv`, `movies.csv`); also Parquet (`ratings.parquet`, `items.parquet`, `users.parquet`).

Ratings stream from disk. Users and films are in memory while preparing.

Source: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS
2015; label and features as in B. Coleman et al., "Unified Embedding", NeurIPS 2023, and R. Wang et
al., "DCN V2", WWW 2021.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recemb.data.column import CategoricalColumn, Columns, Kind, LabelColumn
from recemb.data.dataset import Dataset
from recemb.data.manifest import SPLITS
from recemb.data.movielens_release import Release, find_release
from recemb.data.pipeline import Description
from recemb.data.pipeline import prepare as prepare_description
from recemb.data.prepared import Prepared
from recemb.data.source import Chunk, Derivation, OnBadLine, Source
from recemb.data.split import ByRatio, ByTime, Codes, Split

USER_FEATURES = ("gender", "age", "age_group", "occupation", "zip")
AGE_GROUPS = (1, 18, 25, 35, 45, 50, 56)
"""The least age of each group of MovieLens 1M, which `age_group` rounds ages down to."""
ITEM_FEATURES = ("release_year", "genres")
TIME_FEATURES = {"hour_of_day": 24, "weekday": 7}
"""Features made of the time of the rating in UTC, with their numbers of ids; Monday is 0."""

Rule = Literal["random", "time", "leave_last"]

_SECONDS_PER_HOUR, _HOURS_PER_DAY, _THURSDAY = 3600, 24, 3


class MovieLens(Dataset):
    """Ratings as examples; `raw` is the folder of one release.

    A rating of at least `positive_from` is positive, one of at most `negative_to` negative; those
    between are left out. With 4 and 2 that is DCN-V2's and Unified Embedding's rule (threes left
    out); "at least 3 is positive" is 3 and 2, with half stars 3 and 2.5.

    Features: `user`, `item`, of the user `gender`, `age`, `age_group`, `occupation`, `zip` (not in
    10M, 20M, 25M and latest), of the film `release_year` and the multi-hot `genres`, of the time
    of the rating `hour_of_day` and `weekday`. What is not known of a user or a film has id 0.

    Args:
        features: which of them; None is all that the release has, but `age_group` and those of the
            time.
        positive_from: the least positive rating.
        negative_to: the greatest negative rating.
        min_count: a value gets an id from this many training occurrences on.
        split: "random" draws ratings by `seed`; "time" takes the last for the test and those before
            for validation, over all users; "leave_last" takes the last rating of each user with
            three or more for the test and the one before for validation (16 bytes of memory per
            rating and more while sorting).
        val: share of the ratings for validation; not used by "leave_last".
        test: share of the ratings for the test; not used by "leave_last".
        seed: of "random".
        group: the column that GAUC groups by, `user` or None.
        on_bad_line: "raise" at the first bad line, or "skip" and count them.

    Raises:
        ValueError: on an unknown choice or a number out of range.
    """

    name = "movielens"

    def __init__(
        self,
        *,
        features: Sequence[str] | None = None,
        positive_from: float = 4.0,
        negative_to: float = 2.0,
        min_count: int = 1,
        split: Rule = "random",
        val: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        group: str | None = "user",
        on_bad_line: OnBadLine = "raise",
    ) -> None:
        if split not in get_args(Rule):
            raise ValueError(
                f"data 'movielens': split must be one of {get_args(Rule)}, got '{split}'"
            )
        if negative_to >= positive_from:
            raise ValueError(
                "data 'movielens': negative_to must be below positive_from, got "
                f"{negative_to} and {positive_from}"
            )
        if group not in (None, "user"):
            raise ValueError(f"data 'movielens': group must be user or null, got '{group}'")
        self.features = None if features is None else tuple(features)
        self.positive_from, self.negative_to = positive_from, negative_to
        self.min_count = min_count
        self.split = _split(split, val, test, seed)
        self.group = group
        self.on_bad_line = on_bad_line

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the prepared set in `out`, made from the folder `raw` if needed."""
        release = find_release(raw)
        features = self._features_of(release)
        description = Description(
            name=self.name,
            source=release.source(self._derivation(release, features)),
            columns=self._columns(features),
            split=self.split,
            on_bad_line=self.on_bad_line,
        )
        return prepare_description(description, out, overwrite=overwrite)

    def _features_of(self, release: Release) -> tuple[str, ...]:
        """Return the features to make.

        Raises:
            ValueError: if the release lacks one that is asked for.
        """
        known = (
            *("user", "item"),
            *(f for f in USER_FEATURES if release.users is not None),
            *ITEM_FEATURES,
        )
        for feature in self.features or ():
            if feature not in (*known, *TIME_FEATURES):
                raise ValueError(
                    f"data 'movielens': there is no feature '{feature}' in {release.ratings}; it "
                    f"has {[*known, *TIME_FEATURES]}"
                )
        return (
            tuple(f for f in known if f != "age_group") if self.features is None else self.features
        )

    def _columns(self, features: Sequence[str]) -> Columns:
        columns = []
        for name in features:
            if name in TIME_FEATURES:
                num_ids = TIME_FEATURES[name]
                column = CategoricalColumn(name=name, encoding="ids", num_embeddings=num_ids)
            else:
                column = CategoricalColumn(
                    name=name,
                    min_count=self.min_count,
                    kind="int" if name in ("user", "item", "age", "age_group") else "string",
                    is_multi_hot=name == "genres",
                )
            columns.append(column)
        label = LabelColumn(name="rating", threshold=self.positive_from)
        return Columns(label=label, categorical=tuple(columns), group=self.group)

    def _derivation(self, release: Release, features: Sequence[str]) -> Derivation:
        return Derivation(
            name=f"{release.name} 1, without ratings above {self.negative_to} "
            f"and below {self.positive_from}",
            inputs={
                release.user: "int",
                release.item: "int",
                "rating": "float",
                "timestamp": "int",
            },
            outputs=("user", "item", *USER_FEATURES, *ITEM_FEATURES, *TIME_FEATURES),
            apply=lambda table: _with_features(table, release, features),
            keep=self._is_used,
            files=release.attribute_files,
        )

    def _is_used(self, table: pa.Table) -> NDArray[np.bool_]:
        """Return which ratings are not between the limits; those missing are dealt with later."""
        column = table.column("rating").combine_chunks()
        try:
            ratings: NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return np.ones(len(column), bool)  # the check of the label says what is wrong
        return ~((ratings > self.negative_to) & (ratings < self.positive_from))


class LeaveLast(Split):
    """The last rating of each user is for the test, the one before for validation.

    Users with fewer than three ratings are for training. Ratings of the same time are in the order
    of the lines.
    """

    def __init__(self) -> None:
        self._codes: Codes = np.zeros(0, np.uint8)

    def kinds(self) -> dict[str, Kind]:
        """Return user and time."""
        return {"user": "int", "timestamp": "int"}

    def fit(self, source: Source, on_bad_line: OnBadLine) -> None:
        """Find the last ratings of each user."""
        chunks = list(source.chunks(self.kinds(), on_bad_line))
        rows = np.concatenate([c.rows for c in chunks])
        users = np.concatenate([complete(c, "user") for c in chunks])
        times = np.concatenate([complete(c, "timestamp") for c in chunks])
        order = np.lexsort((rows, times, users))
        users, rows = users[order], rows[order]
        ends = np.flatnonzero(np.append(users[1:] != users[:-1], True))
        ends = ends[np.diff(ends, prepend=-1) >= len(SPLITS)]
        self._codes = np.zeros(int(rows.max()) + 1, np.uint8)
        self._codes[rows[ends]] = SPLITS.index("test")
        self._codes[rows[ends - 1]] = SPLITS.index("val")

    def assign(self, chunk: Chunk) -> Codes:
        """Return the code found for each row."""
        return self._codes[chunk.rows]

    def settings(self) -> dict[str, Any]:
        """Return the rule's name."""
        return {"rule": "leave_last"}


def _split(rule: Rule, val: float, test: float, seed: int) -> Split:
    if rule == "leave_last":
        return LeaveLast()
    if rule == "time":
        return ByTime(val=val, test=test, column="timestamp")
    return ByRatio(val=val, test=test, seed=seed)


def _with_features(table: pa.Table, release: Release, features: Sequence[str]) -> pa.Table:
    """Return `table` with `user`, `item` and the features."""
    users = whole_numbers(table, release.user, release.ratings)
    items = whole_numbers(table, release.item, release.ratings)
    times = whole_numbers(table, "timestamp", release.ratings)
    found: dict[str, pa.Array] = {"user": users, "item": items, "timestamp": times}
    for name in features:
        if name in USER_FEATURES:
            assert release.users is not None
            read = "age" if name == "age_group" else name
            values = release.users.values(read, users)
            found[name] = _age_groups(values) if name == "age_group" else values
        elif name in ITEM_FEATURES:
            found[name] = release.items.values(name, items)
        elif name in TIME_FEATURES:
            found[name] = _time_feature(name, times)
    others = [c for c in table.column_names if c not in found]
    return pa.table({**{c: table.column(c) for c in others}, **found})


def _age_groups(ages: pa.Array) -> pa.Array:
    """Return the least age of each one's group, (n,) int64, null where missing."""
    is_missing = ages.is_null().to_numpy(zero_copy_only=False)
    years = ages.cast(pa.int64()).fill_null(0).to_numpy()
    places = np.searchsorted(AGE_GROUPS, years, side="right") - 1
    return pa.array(np.asarray(AGE_GROUPS)[np.maximum(places, 0)], mask=is_missing)


def _time_feature(name: str, times: pa.Array) -> pa.Array:
    """Return hour or weekday of `times`, (n,) seconds since 1970, in UTC."""
    is_missing = times.is_null().to_numpy(zero_copy_only=False)
    hours = times.fill_null(0).to_numpy() // _SECONDS_PER_HOUR
    if name == "hour_of_day":
        return pa.array(hours % _HOURS_PER_DAY, mask=is_missing)
    return pa.array((hours // _HOURS_PER_DAY + _THURSDAY) % 7, mask=is_missing)


def whole_numbers(table: pa.Table, name: str, file: Path) -> pa.Array:
    """Return a column as int64, null where missing.

    Raises:
        ValueError: if a value is no integer.
    """
    try:
        return table.column(name).combine_chunks().cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"{file}: column '{name}' must hold whole numbers, but {error}; correct the file"
        ) from error


def complete(chunk: Chunk, name: str) -> NDArray[np.int64]:
    """Return a column of integers, (n,).

    Raises:
        ValueError: if one is missing.
    """
    column = chunk.table.column(name).combine_chunks()
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(
            f"{chunk.file}:{chunk.lines[row]}: column '{name}' is missing, but the split is by "
            "user and time; correct the line or split in another way"
        )
    values: NDArray[np.int64] = column.to_numpy()
    return values
