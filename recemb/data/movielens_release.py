"""The forms in which MovieLens comes: which files, how they are read, what they say of whom."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recemb.data.column import Kind
from recemb.data.location import file_among, one_of
from recemb.data.parquet import ParquetFiles
from recemb.data.source import Derivation, Source, missing_file
from recemb.data.text import DelimitedText

GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""The genres of MovieLens 100K in the order of the columns of `u.item`, as `u.genre` has them."""

_NAME = "movielens"
_NO_GENRES = "(no genres listed)"
_WAY_OUT = (
    "fetch a release from https://grouplens.org/datasets/movielens/, unpack it, and point data.raw "
    "at its folder"
)


class Attributes:
    """What is known of users or of films.

    Args:
        file: where it comes from, for messages.
        table: one row per user or film.
        key: the column of their numbers.

    Raises:
        ValueError: if a number occurs twice or is missing.
    """

    def __init__(self, file: Path, table: pa.Table, key: str) -> None:
        numbers = table.column(key).combine_chunks().cast(pa.int64())
        if numbers.null_count:
            raise ValueError(f"{file}: column '{key}' is missing in a row; correct the file")
        keys = numbers.to_numpy()
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._table = table.take(pa.array(order)).combine_chunks()
        repeated = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        if repeated.size:
            raise ValueError(
                f"{file}: column '{key}' has value '{self._keys[repeated[0]]}' twice; "
                "remove one of the rows"
            )

    def values(self, name: str, numbers: pa.Array) -> pa.Array:
        """Return attribute `name` of each of `numbers` (n,) int64, null where not known."""
        wanted = numbers.fill_null(-1).to_numpy()
        places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        is_unknown = self._keys[places] != wanted
        found = self._table.column(name).take(pa.array(places, mask=is_unknown))
        return found.combine_chunks()


@dataclass(frozen=True, kw_only=True)
class Release:
    """One form of MovieLens.

    Attributes:
        name: of the form.
        ratings: the file of the ratings.
        source: reads the ratings, with derived columns.
        user: the raw column of the user's number.
        item: the raw column of the film's number.
        users: gender, age, occupation and zip, or None where the release has none of them.
        items: release_year and genres.
        attribute_files: the files of users and films.
    """

    name: str
    ratings: Path
    source: Callable[[Derivation], Source]
    user: str = "user"
    item: str = "item"
    users: Attributes | None
    items: Attributes
    attribute_files: tuple[Path, ...]


def find_release(folder: Path) -> Release:
    """Return the release that lies in `folder`.

    Raises:
        FileNotFoundError: if there is none, or a file of it is missing.
        ValueError: if there is only a set without ratings, or a file is malformed.
    """
    if not folder.exists():
        raise missing_file(_NAME, folder, _WAY_OUT)
    if not folder.is_dir():
        raise ValueError(
            f"data '{_NAME}': {folder} is a file, but raw must be the folder of a release; "
            f"{_WAY_OUT}"
        )
    for name, read in (
        ("u.data", _release_100k),
        ("ratings.dat", _release_1m),
        ("ratings.csv", _release_latest),
        ("ratings.parquet", _release_parquet),
    ):
        if ratings := one_of(folder, [name]):
            return read(ratings)
    if (sequences := folder / "sequences.parquet").exists():
        raise ValueError(
            f"data '{_NAME}': {sequences} is a set of behaviour sequences: users' films in order, "
            "without ratings, so there is no label to predict; for ratings "
            f"{_WAY_OUT}"
        )
    raise FileNotFoundError(
        f"data '{_NAME}': {folder} holds none of u.data, ratings.dat, ratings.csv and "
        f"ratings.parquet; {_WAY_OUT}"
    )


def _release_100k(ratings: Path) -> Release:
    folder = ratings.parent
    user_file = file_among(_NAME, folder, ["u.user"], _WAY_OUT)
    item_file = file_among(_NAME, folder, ["u.item"], _WAY_OUT)
    read = partial(_read_text, delimiter="|", encoding="latin-1")
    users = read(
        user_file, ("user", "age", "gender", "occupation", "zip"), {"user": "int", "age": "int"}
    )
    items = read(
        item_file,
        ("item", "title", "released", "video_released", "url", *GENRES_100K),
        {"item": "int", **dict.fromkeys(GENRES_100K, "int")},
    )
    items = items.append_column("release_year", _last_year(items.column("released")))
    items = items.append_column("genres", _flagged_genres(items))
    return Release(
        name="100K",
        ratings=ratings,
        source=_text_source(ratings, delimiter="\t", encoding="latin-1"),
        users=Attributes(user_file, users, "user"),
        items=Attributes(item_file, items, "item"),
        attribute_files=(user_file, item_file),
    )


def _release_1m(ratings: Path) -> Release:
    """Return 1M, or 10M, which has no users and is UTF-8."""
    folder = ratings.parent
    user_file = one_of(folder, ["users.dat"])
    item_file = file_among(_NAME, folder, ["movies.dat"], _WAY_OUT)
    encoding = "latin-1" if user_file else "utf-8"
    read = partial(_read_text, delimiter="::", encoding=encoding)
    users = None
    if user_file:
        names = ("user", "gender", "age", "occupation", "zip")
        table = read(user_file, names, {"user": "int", "age": "int"})
        users = Attributes(user_file, table, "user")
    items = read(item_file, ("item", "title", "genres"), {"item": "int"})
    return Release(
        name="1M" if user_file else "10M",
        ratings=ratings,
        source=_text_source(ratings, delimiter="::", encoding=encoding),
        users=users,
        items=Attributes(item_file, _with_year_and_genres(items), "item"),
        attribute_files=(*([user_file] if user_file else []), item_file),
    )


def _release_latest(ratings: Path) -> Release:
    item_file = file_among(_NAME, ratings.parent, ["movies.csv"], _WAY_OUT)
    kinds: dict[str, Kind] = {"movieId": "int", "title": "string", "genres": "string"}
    items = pa.concat_tables([c.table for c in DelimitedText([item_file]).chunks(kinds, "raise")])
    return Release(
        name="latest",
        ratings=ratings,
        source=lambda derivation: DelimitedText([ratings], derivation=derivation),
        user="userId",
        item="movieId",
        users=None,
        items=Attributes(item_file, _with_year_and_genres(items), "movieId"),
        attribute_files=(item_file,),
    )


def _release_parquet(ratings: Path) -> Release:
    folder = ratings.parent
    user_file = file_among(_NAME, folder, ["users.parquet"], _WAY_OUT)
    item_file = file_among(_NAME, folder, ["items.parquet"], _WAY_OUT)
    users = _read_parquet(user_file, ("user_id", "gender", "age", "occupation", "zip_code"))
    items = _read_parquet(item_file, ("item_id", "release_year", "class"))
    genres = _listed_genres(items.column("class"), " ")
    return Release(
        name="Parquet",
        ratings=ratings,
        source=lambda derivation: ParquetFiles([ratings], derivation=derivation),
        users=Attributes(user_file, users.rename_columns({"zip_code": "zip"}), "user_id"),
        items=Attributes(item_file, items.append_column("genres", genres), "item_id"),
        attribute_files=(user_file, item_file),
    )


def _text_source(ratings: Path, *, delimiter: str, encoding: str) -> Callable[[Derivation], Source]:
    def source(derivation: Derivation) -> Source:
        return DelimitedText(
            [ratings],
            delimiter=delimiter,
            column_names=("user", "item", "rating", "timestamp"),
            quote=None,
            encoding=encoding,
            derivation=derivation,
        )

    return source


def _read_text(
    file: Path, names: Sequence[str], kinds: Mapping[str, Kind], *, delimiter: str, encoding: str
) -> pa.Table:
    """Return a small file whole; columns without a kind are strings."""
    source = DelimitedText(
        [file], delimiter=delimiter, column_names=names, quote=None, encoding=encoding
    )
    all_kinds: dict[str, Kind] = {name: kinds.get(name, "string") for name in names}
    return pa.concat_tables([c.table for c in source.chunks(all_kinds, "raise")])


def _read_parquet(file: Path, names: Sequence[str]) -> pa.Table:
    kinds: dict[str, Kind] = dict.fromkeys(names, "string")
    return pa.concat_tables([c.table for c in ParquetFiles([file]).chunks(kinds, "raise")])


def _with_year_and_genres(items: pa.Table) -> pa.Table:
    """Return films with the year at the end of the title, and the genres as lists."""
    years = pc.extract_regex(items.column("title"), r"\((?P<year>\d{4})\)\s*$")
    genres = _listed_genres(items.column("genres"), "|")
    return (
        items.append_column("release_year", pc.struct_field(years, "year"))
        .drop_columns("genres")
        .append_column("genres", genres)
    )


def _last_year(dates: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the year of dates such as 01-Jan-1995."""
    return pc.struct_field(pc.extract_regex(dates, r"(?P<year>\d{4})$"), "year")


def _listed_genres(genres: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    is_none = pc.or_(pc.equal(genres, _NO_GENRES), pc.equal(genres, ""))
    return pc.split_pattern(pc.if_else(is_none, None, genres), separator)


def _flagged_genres(items: pa.Table) -> pa.Array:
    """Return the genres whose columns are 1."""
    flags = np.stack([items.column(g).to_numpy() == 1 for g in GENRES_100K], axis=1)
    films, genres = np.nonzero(flags)
    names = np.array(GENRES_100K)[genres]
    offsets = np.searchsorted(films, np.arange(len(flags) + 1))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(names.tolist()))
