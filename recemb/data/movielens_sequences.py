"""MovieLens as sequences of behaviours: which film a user rates next.

Every rating is a behaviour, whatever its stars. A film's category is the combination of its genres.
Read are the releases of `recemb.data.movielens`, and `sequences.parquet` (user, pos, item in order)
with `movies.parquet`. Everything is in memory while preparing.

Source: protocol of DARE, see `recemb.data.user_log`; F. M. Harper and J. A. Konstan, "The MovieLens
Datasets: History and Context", ACM TiiS 2015.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recemb.data.behaviour_set import BehaviourSet
from recemb.data.column import Kind
from recemb.data.encoder import keyed
from recemb.data.location import file_among
from recemb.data.movielens import complete, whole_numbers
from recemb.data.movielens_release import Attributes, find_release
from recemb.data.parquet import ParquetFiles
from recemb.data.preparation import prepare_once
from recemb.data.prepared import Prepared
from recemb.data.source import Derivation, OnBadLine, Source
from recemb.data.user_log import UserLog, write_samples

_WAY_OUT = "it says which genres the films of sequences.parquet have"


class MovieLensSequences(BehaviourSet):
    """Users' films in order of time; `raw` is the folder of one release."""

    name = "movielens_sequences"

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the prepared set in `out`, made from the folder `raw` if needed."""
        form = _ordered(raw) if (raw / "sequences.parquet").exists() else _rated(raw)

        settings: dict[str, Any] = {"form": form.name, "protocol": self.protocol.settings()}
        if self.on_bad_line != "raise":
            settings["on_bad_line"] = self.on_bad_line

        def write(folder: Path, facts: Mapping[str, Any]) -> None:
            log = form.log(self.on_bad_line)
            write_samples(
                lambda: [log],
                self.protocol,
                folder,
                facts,
                name=self.name,
                kinds={"item": "int", "category": "string"},
            )

        return prepare_once(
            out,
            name=self.name,
            settings=settings,
            sources=form.files,
            write=write,
            overwrite=overwrite,
        )


@dataclass(frozen=True, kw_only=True)
class _Form:
    """One form of the raw files.

    Attributes:
        name: of the form.
        source: reads behaviours, with the columns user, item and `time`.
        films: the genres of each.
        files: all raw files.
        time: the column that orders a user's behaviours.
    """

    name: str
    source: Source
    films: Attributes
    files: tuple[Path, ...]
    time: str

    def log(self, on_bad_line: OnBadLine) -> UserLog:
        """Return all behaviours."""
        kinds: dict[str, Kind] = {"user": "int", "item": "int", self.time: "int"}
        chunks = list(self.source.chunks(kinds, on_bad_line))
        users, times, items = (
            np.concatenate([complete(chunk, name) for chunk in chunks])
            for name in ("user", self.time, "item")
        )
        genres = self.films.values("genres", pa.array(items))
        if pa.types.is_list(genres.type):
            genres = pc.binary_join(genres, pa.scalar("|", genres.type.value_type))
        return UserLog.sorted_from(users, times, items, keyed(genres).of_rows())


def _rated(raw: Path) -> _Form:
    """Return a release of ratings.

    Raises:
        FileNotFoundError: if there is none in `raw`, or a file of it is missing.
        ValueError: if a file is malformed.
    """
    release = find_release(raw)

    def whole(table: pa.Table) -> pa.Table:
        names = {"user": release.user, "item": release.item, "timestamp": "timestamp"}
        return pa.table(
            {new: whole_numbers(table, old, release.ratings) for new, old in names.items()}
        )

    rule = Derivation(
        name="numbers",
        inputs={release.user: "int", release.item: "int", "timestamp": "int"},
        outputs=("user", "item", "timestamp"),
        apply=whole,
    )
    return _Form(
        name=release.name,
        source=release.source(rule),
        films=release.items,
        files=(release.ratings, *release.attribute_files),
        time="timestamp",
    )


def _ordered(raw: Path) -> _Form:
    """Return `sequences.parquet` and `movies.parquet`.

    Raises:
        FileNotFoundError: if the latter is missing.
        ValueError: if a file is malformed.
    """
    sequences = raw / "sequences.parquet"
    movies = file_among(MovieLensSequences.name, raw, ["movies.parquet"], _WAY_OUT)
    kinds: dict[str, Kind] = {"item": "int", "genres": "string"}
    films = pa.concat_tables([c.table for c in ParquetFiles([movies]).chunks(kinds, "raise")])

    def whole(table: pa.Table) -> pa.Table:
        names = ("user", "item", "pos")
        return pa.table({name: whole_numbers(table, name, sequences) for name in names})

    rule = Derivation(
        name="numbers",
        inputs={"user": "int", "item": "int", "pos": "int"},
        outputs=("user", "item", "pos"),
        apply=whole,
    )
    return _Form(
        name="sequences",
        source=ParquetFiles([sequences], derivation=rule),
        films=Attributes(movies, films, "item"),
        files=(sequences, movies),
        time="pos",
    )
