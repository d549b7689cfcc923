"""KDD Cup 2012 track 2, on files with made-up rows."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import pytest

from recemb.data.kdd12 import FEATURES, KDD12, PROFILE
from recemb.data.prepared import Prepared

BIG_URL = 2**64 - 59  # needs all 64 bits


def line(click: int = 0, user: object = 7, *, ad: int = 3, impression: int = 1) -> str:
    values = [click, impression, BIG_URL, ad, 23808, 2, 1, 11, 22, 33, 44, user]
    return "\t".join(map(str, values))


def write(folder: Path, lines: Sequence[str], profiles: Sequence[str] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.txt").write_text("".join(f"{row}\n" for row in lines))
    if profiles:
        (folder / "userid_profile.txt").write_text("".join(f"{row}\n" for row in profiles))
    return folder


def prepared_from(raw: Path, **options: object) -> Prepared:
    settings = {"min_count": 1, "val": 0.0, "test": 0.0, **options}
    out = raw.parent / f"out_{raw.name}"
    return KDD12(**settings).prepare(raw, out)


def ids(prepared: Prepared, feature: str) -> list[int]:
    batch = next(prepared.batches("train", batch_size=1000))
    values: list[int] = batch.features[feature].values().tolist()
    return values


def test_features_are_the_ten_columns_of_the_log(tmp_path: Path) -> None:
    prepared = prepared_from(write(tmp_path / "raw", [line()]))
    assert prepared.schema.feature_names == FEATURES


def test_a_line_is_positive_if_it_was_clicked_at_all(tmp_path: Path) -> None:
    lines = [line(0, impression=9), line(1), line(3, impression=4)]
    prepared = prepared_from(write(tmp_path / "raw", lines))
    labels = next(prepared.batches("train", batch_size=3)).labels
    assert labels.tolist() == [0.0, 1.0, 1.0]


def test_urls_of_64_bits_have_a_vocabulary(tmp_path: Path) -> None:
    prepared = prepared_from(write(tmp_path / "raw", [line()]))
    assert ids(prepared, "display_url") == [1]


def test_rare_values_share_id_zero(tmp_path: Path) -> None:
    lines = [line(ad=1), line(ad=2), line(ad=1)]
    assert ids(prepared_from(write(tmp_path / "raw", lines), min_count=2), "ad_id") == [1, 0, 1]


def test_a_size_hashes_the_features(tmp_path: Path) -> None:
    prepared = prepared_from(write(tmp_path / "raw", [line()]), num_embeddings=20)
    assert {c.num_embeddings for c in prepared.schema.categorical} == {20}


def test_gender_and_age_come_from_the_profiles(tmp_path: Path) -> None:
    profiles = ["30\t2\t6", "7\t1\t5", "8\t0\t3"]
    lines = [line(user=7), line(user=8), line(user=30), line(user=0), line(user=31)]
    prepared = prepared_from(write(tmp_path / "raw", lines, profiles), with_profile=True)
    assert ids(prepared, "gender") == [1, 0, 2, 0, 0]
    assert ids(prepared, "age") == [5, 3, 6, 0, 0]
    sizes = {c.name: c.num_embeddings for c in prepared.schema.categorical}
    assert {name: sizes[name] for name in PROFILE} == PROFILE


def test_a_changed_profile_is_noticed(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", [line()], ["7\t1\t5"])
    prepared_from(raw, with_profile=True)
    (raw / "userid_profile.txt").write_text("7\t2\t5\n")
    with pytest.raises(ValueError, match=r"content of .*userid_profile\.txt has changed"):
        prepared_from(raw, with_profile=True)


@pytest.mark.parametrize(("profile", "column"), [("8\t3\t1", "gender"), ("8\t1\t7", "age")])
def test_a_bad_profile_is_reported_with_its_line(tmp_path: Path, profile: str, column: str) -> None:
    raw = write(tmp_path / "raw", [line()], ["7\t1\t5", profile])
    with pytest.raises(ValueError, match=rf"userid_profile\.txt:2: column '{column}' has value"):
        prepared_from(raw, with_profile=True)


def test_missing_profiles_are_named(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", [line()])
    with pytest.raises(FileNotFoundError, match=r"holds no userid_profile\.txt"):
        prepared_from(raw, with_profile=True)


def test_packed_and_plain_files_give_the_same_set(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", [line(i % 2, user=i) for i in range(50)])
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress((raw / "training.txt").read_bytes()))
    assert prepared_from(raw).manifest["files"] == prepared_from(packed).manifest["files"]


def test_examples_can_be_grouped_by_user(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", [line(user=5), line(user=9)])
    groups = next(prepared_from(raw, group="user_id").batches("train", batch_size=2)).groups
    assert groups is not None
    assert groups.tolist() == [5, 9]


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; fetch track2\.zip"):
        KDD12().prepare(tmp_path / "nowhere", tmp_path / "out")
