"""Avazu's training file, with made-up rows."""

import datetime
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recemb.data.avazu import CALENDAR, STRINGS, Avazu, with_calendar
from recemb.data.prepared import Prepared

HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,"
    "device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)


def row(number: int, hour: object = 14102100, site: str = "5a5a5a5a") -> str:
    values = [10**18 + number, number % 2, hour, 1005, 0, site, "f0f0f0f0", "28905e00", *["ee"] * 6]
    return ",".join(map(str, [*values, 1, 0, 15706, 320, 50, 1722, 0, 35, -1, 79]))


def write(path: Path, rows: Sequence[str]) -> Path:
    data = "".join(f"{line}\n" for line in [HEADER, *rows]).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def prepared_from(tmp_path: Path, rows: Sequence[str], **options: object) -> Prepared:
    raw = write(tmp_path / "train.csv", rows)
    settings = {"min_count": 1, "split": "time", "val": 0.0, "test": 0.0, **options}
    return Avazu(**settings).prepare(raw, tmp_path / "out")


def ids(prepared: Prepared, feature: str, split: str = "train") -> list[int]:
    batch = next(prepared.batches(split, batch_size=1000))
    values: list[int] = batch.features[feature].values().tolist()
    return values


def test_features_are_the_calendar_and_21_columns(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, [row(0)])
    assert prepared.schema.feature_names == (*CALENDAR, *STRINGS)
    assert set(STRINGS) | {"id", "click", "hour"} == set(HEADER.split(","))


@pytest.mark.parametrize("date", ["2014-10-21", "2014-10-25", "2014-10-26", "2016-02-29"])
@pytest.mark.parametrize("hour", [0, 23])
def test_hour_gives_hour_weekday_and_weekend(tmp_path: Path, date: str, hour: int) -> None:
    day = datetime.date.fromisoformat(date)
    prepared = prepared_from(tmp_path, [row(0, f"{day:%y%m%d}{hour:02d}")])
    assert ids(prepared, "hour_of_day") == [hour]
    assert ids(prepared, "weekday") == [day.weekday()]
    assert ids(prepared, "is_weekend") == [int(day.weekday() >= 5)]


def test_weekdays_agree_with_the_calendar_for_a_century() -> None:
    start = datetime.date(2000, 1, 1)
    days = [start + datetime.timedelta(i) for i in range(0, 36500, 13)]
    table = with_calendar(pa.table({"hour": [int(f"{d:%y%m%d}07") for d in days]}))
    assert table["weekday"].to_pylist() == [d.weekday() for d in days]
    assert set(table["hour_of_day"].to_pylist()) == {7}


@pytest.mark.parametrize("hour", ["14102124", "14103200", "14130100", "15022900", "7", "-14102100"])
def test_an_impossible_hour_is_reported_with_its_line(tmp_path: Path, hour: str) -> None:
    message = rf"train\.csv:3: column '.*' has value '{hour}', which is not an id"
    with pytest.raises(ValueError, match=message):
        prepared_from(tmp_path, [row(0), row(1, hour)])


def test_a_missing_hour_is_reported_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.csv:2: column 'hour_of_day' is missing"):
        prepared_from(tmp_path, [row(0, "")])


def test_id_can_be_kept(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, [row(i) for i in range(5)], keep_id=True)
    assert sorted(ids(prepared, "id")) == [1, 2, 3, 4, 5]


def test_labels_are_the_clicks(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, [row(i) for i in range(4)])
    assert next(prepared.batches("train", batch_size=4)).labels.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_rare_values_share_id_zero(tmp_path: Path) -> None:
    rows = [row(i, site=site) for i, site in enumerate(("aa", "bb", "aa"))]
    assert ids(prepared_from(tmp_path, rows, min_count=2), "site_id") == [1, 0, 1]


def test_hashing_leaves_the_calendar_as_it_is(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, [row(0)], encoding="hash", num_embeddings=50)
    sizes = {c.name: c.num_embeddings for c in prepared.schema.categorical}
    assert {name: sizes[name] for name in CALENDAR} == CALENDAR
    assert {sizes[name] for name in STRINGS} == {50}


def test_split_by_time_takes_the_last_lines(tmp_path: Path) -> None:
    rows = [row(i, 14102100 + i) for i in range(20)]
    prepared = prepared_from(tmp_path, rows, val=0.1, test=0.2)
    assert ids(prepared, "hour_of_day") == list(range(14))
    assert ids(prepared, "hour_of_day", "val") == [14, 15]
    assert ids(prepared, "hour_of_day", "test") == [16, 17, 18, 19]


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz", "train.gz"])
def test_kaggles_file_is_found_in_its_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path / "raw" / name, [row(i) for i in range(8)])
    prepared = Avazu(split="time").prepare(tmp_path / "raw", tmp_path / "out")
    assert prepared.num_rows("train") == 6


def test_examples_can_be_grouped(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, [row(0), row(1)], group="device_ip")
    groups = next(prepared.batches("train", batch_size=2)).groups
    assert groups is not None
    assert np.unique(groups.numpy()).size == 1


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    raw = tmp_path / "train.csv"
    raw.write_text(HEADER.replace("site_id", "site") + "\n" + row(0) + "\n")
    with pytest.raises(ValueError, match=r"train\.csv: there is no column \['site_id'\]"):
        Avazu().prepare(raw, tmp_path / "out")


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; fetch train\.gz"):
        Avazu().prepare(tmp_path / "nowhere", tmp_path / "out")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data 'avazu': split must be one of .*'day'"):
        Avazu(split="day")
