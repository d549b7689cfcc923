"""MovieLens in the publisher's formats and in Parquet, with made-up users, films and ratings."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recemb.data.movielens import MovieLens
from recemb.data.movielens_release import GENRES_100K
from recemb.data.prepared import Prepared

Rating = tuple[int, int, float, int]

# User, film, stars, seconds. 10 January 2000 was a Monday; 947462400 is its midnight in UTC.
MONDAY = 947_462_400
RATINGS: list[Rating] = [
    (1, 10, 5, MONDAY),
    (1, 20, 3, MONDAY + 3600),
    (2, 10, 4, MONDAY + 86400),
    (2, 20, 2, MONDAY + 2 * 86400 + 5 * 3600),
    (1, 20, 1, MONDAY + 4 * 86400),
]
USERS = [(1, "F", 25, "artist", "12345"), (2, "M", 40, "writer", "V1A2B")]
FILMS = [(10, "Café Rosé", 1995, ("Comedy", "Drama")), (20, "Naught", 2001, ())]
EVERY_USER_FEATURE = ("gender", "age", "occupation", "zip")


def write_lines(path: Path, lines: Sequence[str], encoding: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))


def write_100k(folder: Path, ratings: Sequence[Rating] = RATINGS) -> Path:
    write_lines(
        folder / "u.data", [f"{u}\t{i}\t{int(r)}\t{t}" for u, i, r, t in ratings], "latin-1"
    )
    write_lines(
        folder / "u.user",
        [f"{u}|{age}|{sex}|{job}|{z}" for u, sex, age, job, z in USERS],
        "latin-1",
    )
    films = []
    for film, title, year, genres in FILMS:
        flags = "|".join(str(int(g in genres)) for g in GENRES_100K)
        films.append(f"{film}|{title} ({year})|01-Jan-{year}||http://example.org/{film}|{flags}")
    write_lines(folder / "u.item", films, "latin-1")
    return folder


def write_1m(folder: Path, ratings: Sequence[Rating] = RATINGS) -> Path:
    lines = [f"{u}::{i}::{int(r)}::{t}" for u, i, r, t in ratings]
    write_lines(folder / "ratings.dat", lines, "latin-1")
    lines = [f"{u}::{sex}::{age}::{job}::{z}" for u, sex, age, job, z in USERS]
    write_lines(folder / "users.dat", lines, "latin-1")
    lines = [f"{f}::{title} ({year})::{'|'.join(g)}" for f, title, year, g in FILMS]
    write_lines(folder / "movies.dat", lines, "latin-1")
    return folder


def write_latest(folder: Path, ratings: Sequence[Rating] = RATINGS) -> Path:
    lines = [f"{u},{i},{float(r)},{t}" for u, i, r, t in ratings]
    write_lines(folder / "ratings.csv", ["userId,movieId,rating,timestamp", *lines], "utf-8")
    lines = [
        f'{f},"{title}, The ({year})",{"|".join(g) or "(no genres listed)"}'
        for f, title, year, g in FILMS
    ]
    write_lines(folder / "movies.csv", ["movieId,title,genres", *lines], "utf-8")
    return folder


def write_parquet(folder: Path, ratings: Sequence[Rating] = RATINGS) -> Path:
    folder.mkdir(parents=True)
    users, items, stars, times = (list(c) for c in zip(*ratings, strict=True))
    pq.write_table(
        pa.table(
            {
                "user": users,
                "item": items,
                "rating": pa.array([int(s) for s in stars], pa.int8()),
                "timestamp": times,
            }
        ),
        folder / "ratings.parquet",
    )
    columns = ("user_id", "gender", "age", "occupation", "zip_code")
    people = dict(zip(columns, (list(c) for c in zip(*USERS, strict=True)), strict=True))
    pq.write_table(pa.table(people), folder / "users.parquet")
    films = {
        "item_id": [f[0] for f in FILMS],
        "movie_title": pa.array([f[1] for f in FILMS], pa.large_string()),
        "release_year": pa.array([str(f[2]) for f in FILMS], pa.large_string()),
        "class": pa.array([" ".join(f[3]) for f in FILMS], pa.large_string()),
    }
    pq.write_table(pa.table(films), folder / "items.parquet")
    return folder


ALL_FORMS = pytest.mark.parametrize("write", [write_100k, write_1m, write_latest, write_parquet])
FORMS_WITH_USERS = pytest.mark.parametrize("write", [write_100k, write_1m, write_parquet])
Write = Callable[..., Path]


def prepared_from(raw: Path, **options: object) -> Prepared:
    settings = {"split": "time", "val": 0.0, "test": 0.0, **options}
    out = raw.parent / f"out_{raw.name}"
    return MovieLens(**settings).prepare(raw, out)


def ids(prepared: Prepared, feature: str, split: str = "train") -> list[int]:
    batch = next(prepared.batches(split, batch_size=1000))
    values: list[int] = batch.features[feature].values().tolist()
    return values


def labels(prepared: Prepared, split: str = "train") -> list[float]:
    found: list[float] = next(prepared.batches(split, batch_size=1000)).labels.tolist()
    return found


@ALL_FORMS
def test_threes_are_left_out_and_four_is_positive(tmp_path: Path, write: Write) -> None:
    prepared = prepared_from(write(tmp_path / "raw"))
    assert labels(prepared) == [1.0, 1.0, 0.0, 0.0]
    assert ids(prepared, "user") == [1, 2, 2, 1]


@ALL_FORMS
def test_the_limits_are_arguments(tmp_path: Path, write: Write) -> None:
    prepared = prepared_from(write(tmp_path / "raw"), positive_from=3, negative_to=1)
    assert labels(prepared) == [1.0, 1.0, 1.0, 0.0]  # the two stars are left out


def test_half_stars_are_compared_as_such(tmp_path: Path) -> None:
    ratings = [(1, 10, s, MONDAY + i) for i, s in enumerate((0.5, 2.0, 2.5, 3.5, 4.0, 4.5))]
    prepared = prepared_from(write_latest(tmp_path / "raw", ratings))
    assert labels(prepared) == [0.0, 0.0, 1.0, 1.0]


@ALL_FORMS
def test_genres_are_lists(tmp_path: Path, write: Write) -> None:
    prepared = prepared_from(write(tmp_path / "raw"))
    genres = next(prepared.batches("train", batch_size=10)).features["genres"]
    assert genres.lengths().tolist() == [2, 2, 0, 0]
    assert sorted(genres.values()[:2].tolist()) == [1, 2]


@ALL_FORMS
def test_films_have_their_year(tmp_path: Path, write: Write) -> None:
    prepared = prepared_from(write(tmp_path / "raw"))
    first, second = sorted(set(ids(prepared, "release_year")))
    assert ids(prepared, "release_year") in ([first, first, second, second], [2, 2, 1, 1])
    assert (first, second) == (1, 2)


@FORMS_WITH_USERS
@pytest.mark.parametrize("feature", EVERY_USER_FEATURE)
def test_users_have_what_is_known_of_them(tmp_path: Path, write: Write, feature: str) -> None:
    found = ids(prepared_from(write(tmp_path / "raw")), feature)
    assert set(found) == {1, 2}
    assert found[0] == found[3] != found[1] == found[2]


def test_ages_of_one_group_share_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ages = [17, 18, 24, 25, 56, 90]
    people = [(user, "F", age, "artist", "1") for user, age in enumerate(ages, start=1)]
    monkeypatch.setitem(write_100k.__globals__, "USERS", people)
    ratings = [(user, 10, 5, MONDAY + user) for user in range(1, 7)]
    raw = write_100k(tmp_path / "raw", ratings)
    found = ids(prepared_from(raw, features=["user", "age_group"]), "age_group")
    assert [found.index(i) for i in found] == [0, 1, 1, 3, 4, 4]


def test_age_groups_are_made_only_if_asked_for(tmp_path: Path) -> None:
    prepared = prepared_from(write_100k(tmp_path / "raw"))
    assert "age" in prepared.schema.feature_names
    assert "age_group" not in prepared.schema.feature_names


def test_latest_has_no_user_features(tmp_path: Path) -> None:
    prepared = prepared_from(write_latest(tmp_path / "raw"))
    assert prepared.schema.feature_names == ("user", "item", "release_year", "genres")


def test_ten_million_has_no_user_features(tmp_path: Path) -> None:
    raw = write_1m(tmp_path / "raw")
    (raw / "users.dat").unlink()
    write_lines(raw / "movies.dat", ["10::Café (1995)::Drama", "20::Naught (2001)::War"], "utf-8")
    prepared = prepared_from(raw)
    assert prepared.schema.feature_names == ("user", "item", "release_year", "genres")


def test_features_can_be_chosen(tmp_path: Path) -> None:
    prepared = prepared_from(write_100k(tmp_path / "raw"), features=["item", "gender"])
    assert prepared.schema.feature_names == ("item", "gender")


def test_a_feature_that_the_release_lacks_is_refused(tmp_path: Path) -> None:
    raw = write_latest(tmp_path / "raw")
    with pytest.raises(ValueError, match=r"no feature 'gender' in .*ratings\.csv; it has \['user'"):
        prepared_from(raw, features=["user", "gender"])


@ALL_FORMS
def test_hour_and_weekday_are_those_of_utc(tmp_path: Path, write: Write) -> None:
    prepared = prepared_from(write(tmp_path / "raw"), features=["user", "hour_of_day", "weekday"])
    assert ids(prepared, "hour_of_day") == [0, 0, 5, 0]
    assert ids(prepared, "weekday") == [0, 1, 2, 4]


def test_what_is_not_known_of_a_film_has_id_zero(tmp_path: Path) -> None:
    raw = write_100k(tmp_path / "raw", [*RATINGS, (2, 99, 5, MONDAY)])
    prepared = prepared_from(raw)
    assert ids(prepared, "release_year")[-1] == 0
    assert ids(prepared, "item")[-1] > 0
    genres = next(prepared.batches("train", batch_size=10)).features["genres"]
    assert genres.lengths()[-1] == 0


def test_ratings_are_grouped_by_user(tmp_path: Path) -> None:
    groups = next(prepared_from(write_1m(tmp_path / "raw")).batches("train", batch_size=9)).groups
    assert groups is not None
    assert groups.tolist() == [1, 2, 2, 1]


def test_split_by_time_is_over_all_users(tmp_path: Path) -> None:
    ratings = [(1 + i % 2, 10, 5, MONDAY - i) for i in range(10)]
    raw = write_100k(tmp_path / "raw", ratings)
    prepared = prepared_from(raw, val=0.2, test=0.1, features=["user"])
    assert [prepared.num_rows(s) for s in ("train", "val", "test")] == [7, 2, 1]
    assert ids(prepared, "user", "test") == [2]  # the first line is the latest; user 1 is rarer


def test_leave_last_takes_the_last_of_each_user(tmp_path: Path) -> None:
    ratings = [
        *((1, film, 5, MONDAY + order) for film, order in ((11, 2), (12, 0), (13, 1), (14, 3))),
        *((2, film, 1, MONDAY + order) for film, order in ((15, 2), (16, 1), (17, 0))),
        *((3, film, 1, MONDAY + order) for film, order in ((18, 0), (19, 1))),
    ]
    raw = write_1m(tmp_path / "raw", ratings)
    prepared = prepared_from(raw, split="leave_last", features=["user"])
    # The second half of each user's history: 14 and 15 are the last, 11 and 16 the ones before.
    assert labels(prepared, "test") == [1.0, 0.0]
    assert labels(prepared, "val") == [1.0, 0.0]
    assert prepared.num_rows("train") == 5


def test_leave_last_knows_only_ratings_that_are_used(tmp_path: Path) -> None:
    ratings = [(1, 10, stars, MONDAY + i) for i, stars in enumerate((5, 1, 4, 3, 3))]
    prepared = prepared_from(write_1m(tmp_path / "raw", ratings), split="leave_last")
    assert labels(prepared, "train") == [1.0]
    assert labels(prepared, "val") == [0.0]
    assert labels(prepared, "test") == [1.0]


def test_a_changed_user_file_is_noticed(tmp_path: Path) -> None:
    raw = write_1m(tmp_path / "raw")
    prepared_from(raw)
    (raw / "users.dat").write_text("1::M::25::artist::12345\n2::M::40::writer::V1A2B\n")
    with pytest.raises(ValueError, match=r"content of .*users\.dat has changed"):
        prepared_from(raw)


def test_a_set_of_sequences_is_refused_for_having_no_ratings(tmp_path: Path) -> None:
    (tmp_path / "sequences.parquet").touch()
    with pytest.raises(
        ValueError,
        match=r"sequences\.parquet is a set of behaviour sequences.*"
        r"without ratings.*fetch a release",
    ):
        MovieLens().prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["u.user", "u.item"])
def test_a_missing_attribute_file_is_named(tmp_path: Path, name: str) -> None:
    raw = write_100k(tmp_path / "raw")
    (raw / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"raw holds no {name}"):
        MovieLens().prepare(raw, tmp_path / "out")


def test_a_film_listed_twice_is_reported(tmp_path: Path) -> None:
    raw = write_1m(tmp_path / "raw")
    write_lines(raw / "movies.dat", ["10::A (1990)::War", "10::B (1991)::War"], "latin-1")
    with pytest.raises(ValueError, match=r"movies\.dat: column 'item' has value '10' twice"):
        MovieLens().prepare(raw, tmp_path / "out")


def test_an_empty_folder_says_what_was_sought(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none of u\.data, ratings\.dat.*fetch a release"):
        MovieLens().prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "user"}, r"split must be one of .*'user'"),
        ({"positive_from": 2.0}, r"negative_to must be below positive_from, got 2\.0 and 2\.0"),
        ({"group": "item"}, r"group must be user or null, got 'item'"),
        ({"val": 0.5, "test": 0.5}, r"val and test must be at least 0 and below 1 together"),
    ],
)
def test_an_impossible_setting_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MovieLens(**options)


@pytest.mark.skipif("RECEMB_DATA" not in os.environ, reason="needs ml-100k under RECEMB_DATA")
def test_real_100k_has_the_published_number_of_rows_without_threes(tmp_path: Path) -> None:
    raw = Path(os.environ["RECEMB_DATA"]) / "ml-100k"
    prepared = MovieLens().prepare(raw, tmp_path / "out")
    assert sum(prepared.num_rows(s) for s in prepared.splits) == 72_855
    assert torch.equal(
        torch.tensor([c.is_multi_hot for c in prepared.schema.categorical]),
        torch.tensor([f == "genres" for f in prepared.schema.feature_names]),
    )
