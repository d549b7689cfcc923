"""Amazon reviews, from files with made-up rows in the publishers' formats."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recemb.data.amazon import Amazon
from recemb.data.encoder import keyed
from recemb.data.prepared import Prepared

SETTINGS = {"min_behaviours": 12, "max_history": 8}
NUM_USERS, LENGTH = 4, 20


def behaviours() -> list[tuple[str, str, int]]:
    """Return users, products and seconds, in any order of time."""
    draw = np.random.default_rng(0)
    times = draw.permutation(NUM_USERS * LENGTH)
    products = draw.integers(30, size=NUM_USERS * LENGTH)
    return [
        (f"A{n % NUM_USERS}", f"B{product:09d}", int(time))
        for n, (product, time) in enumerate(zip(products, times, strict=True))
    ]


def category(item: str) -> str:
    return f"kind {int(item[1:]) % 5}"


def of_2014(folder: Path) -> Path:
    folder.mkdir()
    reviews = [
        json.dumps(
            {"reviewerID": u, "asin": i, "overall": 4.0, "unixReviewTime": t, "helpful": [0, 1]}
        )
        for u, i, t in behaviours()
    ]
    (folder / "reviews_Toys_5.json.gz").write_bytes(gzip.compress("\n".join(reviews).encode()))
    items = sorted({i for _, i, _ in behaviours()})
    entries = [repr({"asin": i, "categories": [["All", category(i)], ["Other"]]}) for i in items]
    (folder / "meta_Toys.json").write_text("\n".join([*entries, ""]))
    return folder


def of_2018(folder: Path) -> Path:
    folder.mkdir()
    reviews = [
        json.dumps(
            {"overall": 5, "reviewerID": u, "asin": i, "unixReviewTime": t, "style": {"a": "b"}}
        )
        for u, i, t in behaviours()
    ]
    (folder / "Toys_5.json").write_text("\n".join([*reviews, ""]))
    items = sorted({i for _, i, _ in behaviours()})
    entries = [json.dumps({"category": ["All", category(i)], "asin": i}) for i in items]
    (folder / "meta_Toys.json").write_text("\n".join([*entries, ""]))
    return folder


def of_2023(folder: Path) -> Path:
    folder.mkdir()
    reviews = [
        json.dumps({"rating": 5.0, "asin": "x", "parent_asin": i, "user_id": u, "timestamp": t})
        for u, i, t in behaviours()
    ]
    (folder / "Toys.jsonl").write_text("\n".join([*reviews, ""]))
    items = sorted({i for _, i, _ in behaviours()})
    entries = [json.dumps({"categories": ["All", category(i)], "parent_asin": i}) for i in items]
    (folder / "meta_Toys.jsonl").write_text("\n".join([*entries, ""]))
    return folder


def keys(values: list[str]) -> list[int]:
    found = keyed(pa.array(values))
    return [int(key) for key in found.keys[found.places]]


def ids(prepared: Prepared, name: str) -> dict[int, int]:
    numbers = np.fromfile(prepared.folder / f"encoders/{name}.keys.i64", "<i8")
    return {int(key): number for number, key in enumerate(numbers, start=1)}


@pytest.mark.parametrize("write", [of_2014, of_2018, of_2023])
def test_users_are_their_reviews_in_order_of_time(tmp_path: Path, write) -> None:
    prepared = Amazon(**SETTINGS).prepare(write(tmp_path / "raw"), tmp_path / "out")
    batch = next(prepared.batches("test", batch_size=1000))
    number, kind = ids(prepared, "item"), ids(prepared, "category")
    users = dict(zip(keys([f"A{n}" for n in range(NUM_USERS)]), range(NUM_USERS), strict=True))
    groups = batch.groups
    assert groups is not None
    assert set(groups.tolist()) == set(users)
    histories = batch.features["item_history"].to_dense()
    kinds = batch.features["category_history"].to_dense()
    for row in range(0, len(groups), 3):
        its = [b for b in behaviours() if b[0] == f"A{users[int(groups[row])]}"]
        recent = [item for _, item, _ in sorted(its, key=lambda b: b[2])][-9:-1]
        assert histories[row].tolist() == [number.get(key, 0) for key in keys(recent)]
        names = keys([category(item) for item in recent])
        assert kinds[row].tolist() == [kind.get(key, 0) for key in names]


def test_all_releases_give_the_same_samples(tmp_path: Path) -> None:
    made = [
        Amazon(**SETTINGS).prepare(w(tmp_path / w.__name__), tmp_path / f"{w.__name__}.out")
        for w in (of_2014, of_2018, of_2023)
    ]
    assert made[0].manifest["files"] == made[1].manifest["files"] == made[2].manifest["files"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("nonsense", "is no JSON object"),
        ('{"asin": B1}', "is no JSON object"),
        ('{"asin": "B1", "unixReviewTime": 3}', "user is missing"),
        ('{"reviewerID": "u", "asin": "B1", "unixReviewTime": "3"}', "unixReviewTime is no whole"),
        ('{"reviewerID": "u", "asin": "B1", "unixReviewTime": 3.5}', "unixReviewTime is no whole"),
        ('{"reviewerID": "u", "asin": 7, "unixReviewTime": 3}', "asin is no text"),
        ('{"asin": "B1"}{"asin": "B2"}', "is no JSON object"),
    ],
)
def test_a_bad_line_is_named_or_left_out(tmp_path: Path, line: str, what: str) -> None:
    raw = of_2018(tmp_path / "raw")
    clean = Amazon(**SETTINGS).prepare(raw, tmp_path / "clean")
    with (raw / "Toys_5.json").open("a") as file:
        file.write(f"{line}\n")
    number = NUM_USERS * LENGTH + 1
    with pytest.raises(ValueError, match=rf"Toys_5\.json:{number}: .*{what}"):
        Amazon(**SETTINGS).prepare(raw, tmp_path / "out")
    prepared = Amazon(**SETTINGS, on_bad_line="skip").prepare(raw, tmp_path / "out2")
    assert sum(prepared.manifest["bad_lines"].values()) == 1
    assert prepared.manifest["files"] == clean.manifest["files"]


@pytest.mark.parametrize("line", [b'{"asin": 7}', b"nonsense", b"\xff\xfe", b'"text"'])
def test_a_bad_line_of_metadata_is_named_or_left_out(tmp_path: Path, line: bytes) -> None:
    raw = of_2018(tmp_path / "raw")
    clean = Amazon(**SETTINGS).prepare(raw, tmp_path / "clean")
    (metadata,) = raw.glob("meta_*")
    number = len(metadata.read_bytes().splitlines()) + 1
    with metadata.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ValueError, match=rf"{metadata.name}:{number}: "):
        Amazon(**SETTINGS).prepare(raw, tmp_path / "out")
    prepared = Amazon(**SETTINGS, on_bad_line="skip").prepare(raw, tmp_path / "out2")
    assert sum(prepared.manifest["bad_lines"].values()) == 1
    assert prepared.manifest["files"] == clean.manifest["files"]


def test_missing_files_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no reviews in JSON lines; fetch"):
        Amazon(**SETTINGS).prepare(tmp_path, tmp_path / "out")
    (tmp_path / "Toys_5.json").touch()
    with pytest.raises(FileNotFoundError, match=r"holds no metadata \(meta_\*\)"):
        Amazon(**SETTINGS).prepare(tmp_path, tmp_path / "out")
