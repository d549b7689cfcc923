"""MovieLens as behaviours, from files with made-up rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recemb.data.movielens_sequences import MovieLensSequences

NUM_FILMS = 50
SETTINGS = {"min_behaviours": 20, "max_history": 8}


def users_and_films() -> tuple[np.ndarray, np.ndarray]:
    """Return two users' 30 films each, in order of time."""
    draw = np.random.default_rng(0)
    return np.repeat([7, 3], 30), draw.integers(1, NUM_FILMS + 1, 60)


def latest(folder: Path) -> Path:
    folder.mkdir()
    users, films = users_and_films()
    lines = [f"{u},{f},3.5,{100 + i}" for i, (u, f) in enumerate(zip(users, films, strict=True))]
    # Any order of the lines, for the time says which was first.
    order = np.random.default_rng(1).permutation(len(lines))
    text = "\n".join(["userId,movieId,rating,timestamp", *(lines[i] for i in order), ""])
    (folder / "ratings.csv").write_text(text)
    films_file = [f'{i},"Film {i} (1990)",{genres(i)}' for i in range(1, NUM_FILMS + 1)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *films_file, ""]))
    return folder


def genres(film: int) -> str:
    return "Drama|War" if film % 2 else "Comedy"


def ordered(folder: Path) -> Path:
    folder.mkdir()
    users, films = users_and_films()
    pos = np.tile(np.arange(30), 2)
    order = np.random.default_rng(1).permutation(len(users))
    columns = {"user": users[order], "pos": pos[order], "item": films[order]}
    pq.write_table(pa.table(columns), folder / "sequences.parquet")
    numbers = np.arange(1, NUM_FILMS + 1)
    table = pa.table({"item": numbers, "genres": [genres(int(i)) for i in numbers]})
    pq.write_table(table, folder / "movies.parquet")
    return folder


@pytest.mark.parametrize("write", [latest, ordered])
def test_users_are_their_films_in_order_of_time(tmp_path: Path, write) -> None:
    prepared = MovieLensSequences(**SETTINGS).prepare(write(tmp_path / "raw"), tmp_path / "out")
    batch = next(prepared.batches("test", batch_size=10))
    assert batch.groups.tolist() == [3] * 3 + [7] * 3
    keys = np.fromfile(tmp_path / "out/encoders/item.keys.i64", "<i8")
    number = dict(enumerate(keys.tolist(), start=1))
    histories = batch.features["item_history"].to_dense()
    _, films = users_and_films()
    for row, end in ((0, 59), (3, 29)):
        expected = films[end - 8 : end].tolist()
        found = [number.get(i) for i in histories[row].tolist()]
        assert [f for f in found if f] == [e for e, f in zip(expected, found, strict=True) if f]


def test_both_forms_give_the_same_samples(tmp_path: Path) -> None:
    sets = [
        MovieLensSequences(**SETTINGS).prepare(w(tmp_path / w.__name__), tmp_path / f"{i}")
        for i, w in enumerate((latest, ordered))
    ]
    batches = [next(s.batches("train", batch_size=1000)) for s in sets]
    assert batches[0].features.values().tolist() == batches[1].features.values().tolist()


def test_a_category_is_a_combination_of_genres(tmp_path: Path) -> None:
    prepared = MovieLensSequences(**SETTINGS).prepare(latest(tmp_path / "raw"), tmp_path / "out")
    assert prepared.schema.column("category").num_embeddings == 2 + 1


def test_sequences_without_films_are_an_error(tmp_path: Path) -> None:
    raw = ordered(tmp_path / "raw")
    (raw / "movies.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"movies\.parquet"):
        MovieLensSequences(**SETTINGS).prepare(raw, tmp_path / "out")
