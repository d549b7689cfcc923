"""A log of one's own."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recemb.data.behaviour_log import BehaviourLog
from recemb.data.prepared import Prepared
from recemb.data.raw_histories import history_encoder

NAMES = {"user": "who", "time": "when", "item": "what", "category": "kind"}
SETTINGS = {"columns": NAMES, "protocol": {"min_behaviours": 12, "max_history": 8}}


def log(*, text: bool) -> pa.Table:
    draw = np.random.default_rng(0)
    what = draw.integers(40, size=120)
    columns = {
        "who": np.arange(120) % 5,
        "when": draw.permutation(120),
        "what": what,
        "kind": what % 7,
    }
    if text:
        columns |= {
            name: [f"{name} {v}" for v in columns[name]] for name in ("who", "what", "kind")
        }
    return pa.table({**columns, "event": ["view" if n % 9 else "buy" for n in range(120)]})


def write_text(folder: Path, table: pa.Table) -> Path:
    folder.mkdir()
    rows = [";".join(map(str, row.values())) for row in table.to_pylist()]
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        lines = [";".join(table.column_names), *part, ""]
        (folder / f"part{number}.csv").write_text("\n".join(lines))
    return folder


def prepared(folder: Path, raw: Path, **settings) -> Prepared:
    return BehaviourLog(**{**SETTINGS, **settings}).prepare(raw, folder)


def histories(found: Prepared) -> list[list[int]]:
    batch = next(found.batches("test", batch_size=100))
    return [ids.tolist() for ids in batch.features["item_history"].to_dense()]


TEXT = {"files": ["part*.csv"], "text": {"delimiter": ";"}, "only": {"event": "view"}}


def test_histories_are_the_rows_that_count_in_order_of_time(tmp_path: Path) -> None:
    table = log(text=False)
    found = prepared(tmp_path / "out", write_text(tmp_path / "raw", table), **TEXT)
    rows = [row for row in table.to_pylist() if row["event"] == "view"]
    keys = history_encoder(found).vocabularies["item"]
    batch = next(found.batches("test", batch_size=100))
    assert batch.groups is not None
    for user, ids in zip(batch.groups.tolist(), histories(found), strict=True):
        its = sorted((row for row in rows if row["who"] == user), key=lambda row: row["when"])
        expected = np.array([row["what"] for row in its[-9:-1]])
        assert ids == keys.encode(expected).tolist()


def test_a_number_is_what_the_file_has_for_it(tmp_path: Path) -> None:
    table = log(text=False)
    events = pa.array([str(int(event == "view")) for event in table.column("event").to_pylist()])
    table = table.set_column(table.column_names.index("event"), "event", events)
    raw = write_text(tmp_path / "raw", table)
    made = [
        prepared(tmp_path / str(n), raw, **{**TEXT, "only": {"event": value}})
        for n, value in enumerate((1, "1"))
    ]
    assert made[0].manifest["files"] == made[1].manifest["files"]


@pytest.mark.parametrize(
    "other", [{"only": None}, {"columns": {**NAMES, "item": "kind", "category": "what"}}]
)
def test_samples_of_another_description_are_not_taken_for_these(tmp_path: Path, other) -> None:
    raw = write_text(tmp_path / "raw", log(text=False))
    prepared(tmp_path / "out", raw, **TEXT)
    with pytest.raises(ValueError, match="overwrite"):
        prepared(tmp_path / "out", raw, **{**TEXT, **other})


def test_text_and_parquet_give_the_same_samples(tmp_path: Path) -> None:
    table = log(text=True)
    one = prepared(tmp_path / "one", write_text(tmp_path / "raw", table), keys="string", **TEXT)
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet/log.parquet")
    settings = {**TEXT, "files": ["log.parquet"], "text": {}}
    two = prepared(tmp_path / "two", tmp_path / "parquet", keys="string", **settings)
    assert one.manifest["files"] == two.manifest["files"]
    assert one.manifest["kinds"] == {"item": "string", "category": "string"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"user": "who"}}, r"columns says nothing of \['time', 'item', 'category'\]"),
        ({"columns": {**NAMES, "itm": "x"}}, "columns has no 'itm'; did you mean 'item'"),
        ({"keys": "words"}, "keys must be int or string, got 'words'"),
        ({"only": {"a": "1", "b": "2"}}, "only is one column and its value"),
        ({"only": {"a": True}}, "only: a must be a word or a number .* got True"),
        ({"protocol": {"max_histry": 3}}, "protocol has no 'max_histry'; did you mean 'max_hist"),
        ({"text": {"delimeter": ";"}}, "text has no 'delimeter'; did you mean 'delimiter'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BehaviourLog(**{**SETTINGS, "files": ["a.csv"], **settings})


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    raw = write_text(tmp_path / "raw", log(text=False).drop_columns(["kind"]))
    with pytest.raises(ValueError, match="kind"):
        prepared(tmp_path / "out", raw, **TEXT)
