"""The table data set against a naive pandas implementation."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recemb.data.batch import Batch
from recemb.data.prepared import Prepared
from recemb.data.table import Table
from recemb.ids.hashing import hash_rows, hash_seed, hash_strings

NUM_ROWS = 1000
TRAIN, VAL = 800, 900  # rows are in order of time: the first 800, then 100, then 100


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    tags = [[f"t{t}" for t in rng.integers(0, 6, rng.integers(0, 4))] for _ in range(NUM_ROWS)]
    # City k occurs about k times as often as city 1, so no two counts are equal by design of the
    # weights; users are drawn so that some occur once and some only after the training rows.
    return pd.DataFrame(
        {
            "click": rng.integers(0, 2, NUM_ROWS),
            "price": np.where(rng.random(NUM_ROWS) < 0.1, np.nan, rng.normal(5, 2, NUM_ROWS)),
            "visits": rng.integers(-2, 50, NUM_ROWS),
            "user": rng.zipf(1.5, NUM_ROWS) % 500,
            "city": [f"city {k}" for k in np.repeat(np.arange(1, 45), np.arange(1, 45))]
            + ["elsewhere"] * (NUM_ROWS - 990),
            "tags": tags,
            "tag_weights": [[float(i + 1) / 4 for i in range(len(t))] for t in tags],
            "time": np.arange(NUM_ROWS),
        }
    ).assign(city=lambda f: rng.permutation(f["city"]))


DESCRIPTION: dict[str, Any] = {
    "label": "click",
    "dense": {"price": "standardise", "visits": "log", "raw_visits": {"column": "visits"}},
    "categorical": {
        "user": {"kind": "int", "min_count": 2},
        "city": "vocabulary",
        "hashed": {"column": "city", "encoding": "hash", "num_embeddings": 10},
        "tags": {"is_multi_hot": True, "weights": "tag_weights"},
    },
    "split": {"rule": "time", "column": "time", "val": 0.1, "test": 0.1},
}


def write_text(frame: pd.DataFrame, path: Path) -> None:
    frame.assign(
        tags=frame["tags"].map("|".join),
        tag_weights=frame["tag_weights"].map(lambda w: "|".join(map(str, w))),
    ).to_csv(path, index=False)


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    pq.write_table(pa.Table.from_pandas(frame), path, row_group_size=300)


@pytest.fixture(scope="module", params=["csv", "parquet"])
def prepared(
    request: pytest.FixtureRequest, frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    raw = tmp_path_factory.mktemp(request.param)
    write = write_text if request.param == "csv" else write_parquet
    write(frame, raw / f"a.{request.param}")
    text = {"block_bytes": 5000} if request.param == "csv" else {}
    return Table(files=["a.*"], text=text, **DESCRIPTION).prepare(raw, raw / "out")


def whole(prepared: Prepared, split: str) -> Batch:
    return next(prepared.batches(split, batch_size=NUM_ROWS))


def parts(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {"train": frame[:TRAIN], "val": frame[TRAIN:VAL], "test": frame[VAL:]}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_labels_are_the_columns(prepared: Prepared, frame: pd.DataFrame, split: str) -> None:
    assert whole(prepared, split).labels.tolist() == parts(frame)[split]["click"].tolist()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_dense_values_are_pandas(prepared: Prepared, frame: pd.DataFrame, split: str) -> None:
    price, train_price = parts(frame)[split]["price"], frame["price"][:TRAIN]
    visits = parts(frame)[split]["visits"]
    expected = pd.DataFrame(
        {
            "price": ((price - train_price.mean()) / train_price.std(ddof=0)).fillna(0.0),
            "visits": np.sign(visits) * np.log(1 + visits.abs()),
            "raw_visits": visits,
        }
    )
    # Stored as float32: relative precision 6e-8, on values up to 50.
    np.testing.assert_allclose(whole(prepared, split).dense, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_vocabulary_ids_are_by_training_count_then_value(
    prepared: Prepared, frame: pd.DataFrame, split: str
) -> None:
    counts = Counter(frame["user"][:TRAIN].tolist())
    kept = [u for u, n in sorted(counts.items(), key=lambda p: (-p[1], p[0])) if n >= 2]
    ids = {user: i + 1 for i, user in enumerate(kept)}
    expected = [ids.get(u, 0) for u in parts(frame)[split]["user"]]
    assert whole(prepared, split).features["user"].values().tolist() == expected
    assert prepared.schema.categorical[0].num_embeddings == len(kept) + 1


def test_values_unseen_in_training_have_id_0(prepared: Prepared, frame: pd.DataFrame) -> None:
    unseen = ~frame["user"][VAL:].isin(frame["user"][:TRAIN])
    assert unseen.any()
    ids = whole(prepared, "test").features["user"].values().numpy()
    assert (ids[unseen.to_numpy()] == 0).all()


def test_id_1_is_the_most_frequent_and_counts_descend(
    prepared: Prepared, frame: pd.DataFrame
) -> None:
    counts = prepared.id_counts("city")
    expected = frame["city"][:TRAIN].value_counts()
    assert counts[0] == 0
    assert counts[1:].tolist() == sorted(expected.tolist(), reverse=True)
    first = whole(prepared, "train").features["city"].values().numpy() == 1
    assert set(frame["city"][:TRAIN][first]) == {expected.index[0]}


def test_hashed_ids_are_the_documented_hash(prepared: Prepared, frame: pd.DataFrame) -> None:
    keys = hash_strings(pa.array(frame["city"][:TRAIN]))
    expected = 1 + hash_rows(keys, hash_seed(0, "hashed"), 9)
    assert whole(prepared, "train").features["hashed"].values().tolist() == expected.tolist()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_bags_keep_order_lengths_and_weights(
    prepared: Prepared, frame: pd.DataFrame, split: str
) -> None:
    counts = Counter(t for tags in frame["tags"][:TRAIN] for t in tags)
    assert len(set(counts.values())) == len(counts), "the test needs counts without ties"
    ids = {tag: i + 1 for i, (tag, _) in enumerate(counts.most_common())}
    tags = parts(frame)[split]["tags"]
    found = whole(prepared, split).features["tags"]
    assert found.lengths().tolist() == [len(t) for t in tags]
    assert found.values().tolist() == [ids[t] for row in tags for t in row]
    weights = [w for row in parts(frame)[split]["tag_weights"] for w in row]
    assert found.weights().tolist() == weights


def small(raw: Path, text: str, **description: Any) -> Prepared:
    (raw / "a.csv").write_text(text)
    given = {"label": "y", "files": ["a.csv"], "split": {"rule": "ratio", "val": 0, "test": 0}}
    return Table(**{**given, **description}).prepare(raw, raw / "out")


def ids_of(prepared: Prepared, feature: str, split: str = "train") -> list[int]:
    found: list[int] = whole(prepared, split).features[feature].values().tolist()
    return found


def test_missing_is_one_more_value_where_asked(tmp_path: Path) -> None:
    text = "y,c\n1,\n0,\n1,a\n0,\n"
    assert ids_of(small(tmp_path, text, categorical={"c": "vocabulary"}), "c") == [0, 0, 1, 0]
    (tmp_path / "2").mkdir()
    kept = small(tmp_path / "2", text, categorical={"c": {"missing": "value"}})
    assert ids_of(kept, "c") == [1, 1, 2, 1]


def test_num_embeddings_limits_a_vocabulary_to_the_most_frequent(tmp_path: Path) -> None:
    text = "y,c\n1,a\n0,b\n1,b\n0,c\n1,c\n1,c\n"
    found = small(tmp_path, text, categorical={"c": {"num_embeddings": 3}})
    assert ids_of(found, "c") == [0, 2, 2, 1, 1, 1]


def test_buckets_are_the_contest_winners(tmp_path: Path) -> None:
    # floor(ln(x)^2): 3 -> 1, 10 -> 5, 11 -> 5, 100 -> 21; 2, 1 and 0 stay apart.
    text = "y,c\n" + "".join(f"1,{v}\n" for v in [3, 10, 11, 100, 2, 1, 0, ""])
    ids = ids_of(small(tmp_path, text, categorical={"c": {"transform": "buckets"}}), "c")
    assert ids[1] == ids[2]
    assert len(set(ids)) == 7
    assert ids[-1] == 0


def test_label_threshold_makes_labels(tmp_path: Path) -> None:
    text = "y,x\n3.5,0\n4,0\n5,0\n"
    found = small(tmp_path, text, label={"name": "y", "threshold": 4}, dense={"x": "identity"})
    assert whole(found, "train").labels.tolist() == [0, 1, 1]


def test_groups_are_equal_for_equal_values(tmp_path: Path) -> None:
    found = small(tmp_path, "y,x,u\n1,0,a\n1,0,b\n0,0,a\n", dense={"x": "log"}, group="u")
    groups = whole(found, "train").groups
    assert groups is not None
    a, b, c = groups.tolist()
    assert a == c != b


def test_split_by_files(tmp_path: Path) -> None:
    for name, x in (("a", 1), ("b", 2), ("c", 3)):
        (tmp_path / f"{name}.csv").write_text(f"y,x\n1,{x}\n")
    files = {"train": ["c.csv", "a.csv"], "test": ["b.csv"]}
    table = Table(label="y", files=files, dense={"x": "identity"}, split={"rule": "files"})
    found = table.prepare(tmp_path, tmp_path / "out")
    assert found.splits == ("train", "test")
    assert whole(found, "train").dense.tolist() == [[3], [1]]
    assert whole(found, "test").dense.tolist() == [[2]]


def test_split_by_value_leaves_other_values_out(tmp_path: Path) -> None:
    text = "y,x,day\n1,0,1\n1,1,2\n1,2,3\n1,3,1\n1,4,4\n"
    split = {"rule": "value", "column": "day", "train": [1], "test": [3, 4]}
    found = small(tmp_path, text, dense={"x": "identity"}, split=split)
    assert whole(found, "train").dense.flatten().tolist() == [0, 3]
    assert whole(found, "test").dense.flatten().tolist() == [2, 4]
    assert found.manifest["left_out_rows"] == 1


def test_split_by_ratio_is_close_to_the_ratios_and_depends_on_the_seed(tmp_path: Path) -> None:
    text = "y,x\n" + "".join(f"1,{i}\n" for i in range(10_000))
    values = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        split = {"rule": "ratio", "val": 0.2, "test": 0.1, "seed": seed}
        found = small(tmp_path / str(seed), text, dense={"x": "identity"}, split=split)
        # Standard errors are 40 and 30 rows; five of them.
        assert abs(found.num_rows("val") - 2000) < 200
        assert abs(found.num_rows("test") - 1000) < 150
        batches = [next(found.batches(s, batch_size=10_000)) for s in found.splits]
        parts = [b.dense.flatten().tolist() for b in batches]
        assert sorted(x for part in parts for x in part) == list(range(10_000))
        values.append(parts[1])
    assert values[0] != values[1]


def test_split_by_time_keeps_equal_times_together(tmp_path: Path) -> None:
    times = [3, 1, 2, 2, 2, 2, 3, 1, 1, 1]
    text = "y,x,t\n" + "".join(f"1,{i},{t}\n" for i, t in enumerate(times))
    split = {"rule": "time", "column": "t", "val": 0, "test": 0.3}
    found = small(tmp_path, text, dense={"x": "identity"}, split=split)
    # The 8th of ten sorted times is a 2, so all rows of time 2 and 3 are for the test.
    assert whole(found, "train").dense.flatten().tolist() == [1, 7, 8, 9]


def test_split_by_timestamps_in_text(tmp_path: Path) -> None:
    text = "y,x,t\n1,0,2024-01-03 10:00:00\n1,1,2024-01-01 00:00:00\n1,2,2024-01-02 12:00:00\n"
    split = {"rule": "time", "column": "t", "val": 0, "test": 0.34}
    found = small(tmp_path, text, dense={"x": "identity"}, split=split)
    assert whole(found, "test").dense.tolist() == [[0]]


def test_split_by_order_of_lines(tmp_path: Path) -> None:
    text = "y,x\n" + "".join(f"1,{i}\n" for i in range(10))
    split = {"rule": "time", "val": 0.1, "test": 0.2}
    found = small(tmp_path, text, dense={"x": "identity"}, split=split)
    assert [whole(found, s).dense.flatten().tolist() for s in found.splits] == [
        list(range(7)),
        [7],
        [8, 9],
    ]


VALUES = [
    ("2,1,3,x", r"a\.csv:3: column 'y' has value '2.0', which is not a label"),
    (",1,3,x", r"a\.csv:3: column 'y' is missing, which is not a label"),
    ("1,inf,3,x", r"a\.csv:3: column 'x' has value 'inf', which is not finite"),
    ("1,1,5,x", r"a\.csv:3: column 'i' has value '5', which is not an id in \[0, 5\)"),
    ("1,1,-1,x", r"a\.csv:3: column 'i' has value '-1', which is not an id in \[0, 5\)"),
    ("1,1,,x", r"a\.csv:3: column 'i' is missing, which is not an id"),
    ("1,1,3,", r"a\.csv:3: column 'g' is missing, which cannot be"),
]
CHECKED: dict[str, Any] = {
    "dense": {"x": "log"},
    "categorical": {"i": {"encoding": "ids", "num_embeddings": 5}},
    "group": "g",
}


@pytest.mark.parametrize(("line", "message"), VALUES)
def test_value_that_does_not_fit_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(tmp_path, f"y,x,i,g\n1,0,0,a\n{line}\n", **CHECKED)
    assert not (tmp_path / "out").exists()


def test_skipped_lines_are_counted_by_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["1,0,0,a", *(line for line, _ in VALUES), "0,7,4,b", "1,2"]
    found = small(tmp_path, "y,x,i,g\n" + "\n".join(lines), on_bad_line="skip", **CHECKED)
    assert ids_of(found, "i") == [0, 4]
    assert found.manifest["bad_lines"] == {
        "column 'y' is not a label (0 or 1)": 2,
        "column 'x' is not finite": 1,
        "column 'i' is not an id in [0, 5)": 3,
        "column 'g' cannot be: examples need a group": 1,
        "wrong number of columns": 1,
    }
    assert "left out 8 bad lines" in caplog.text


def test_list_whose_weights_do_not_match_is_named(tmp_path: Path) -> None:
    tags = {"t": {"is_multi_hot": True, "weights": "w"}}
    with pytest.raises(ValueError, match=r":3: column 'w' .* not as many weights as 't' has"):
        small(tmp_path, "y,t,w\n1,a|b,1|2\n1,a|b,1\n", categorical=tags)


def test_split_without_training_rows_is_refused(tmp_path: Path) -> None:
    split = {"rule": "value", "column": "x", "train": [9]}
    with pytest.raises(ValueError, match="no row is left for training"):
        small(tmp_path, "y,x\n1,1\n", dense={"x": "log"}, split=split)


def test_missing_file_says_where_it_was_sought(tmp_path: Path) -> None:
    table = Table(label="y", files=["b.csv"], dense={"x": "log"})
    with pytest.raises(FileNotFoundError, match=r"b\.csv does not exist; set data\.files"):
        table.prepare(tmp_path, tmp_path / "out")


def test_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    table = Table(label="y", files=["a.parquet"], dense={"x": "log"})
    with pytest.raises(ValueError, match=r"a\.parquet: this is not a readable Parquet file"):
        table.prepare(tmp_path, tmp_path / "out")


def test_text_where_parquet_should_have_numbers_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"y": [1, 0], "x": ["1.5", "cheap"]}), tmp_path / "a.parquet")
    table = Table(label="y", files=["a.parquet"], dense={"x": "log"})
    message = r"a\.parquet:2: column 'x' has value 'cheap', which is not a number"
    with pytest.raises(ValueError, match=message):
        table.prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense": {"x": {"transfrom": "log"}}}, "did you mean 'transform'"),
        ({"dense": {"x": "logarithm"}}, "transform must be one of"),
        ({"dense": {}}, "describe at least one"),
        ({"split": {"rule": "random"}}, "split.rule must be one of"),
        ({"split": {"rule": "ratio", "train": 0.5}}, "split 'ratio' has no 'train'"),
        ({"split": {"rule": "ratio", "val": 0.5, "test": 0.5}}, "below 1 together"),
        ({"split": {"rule": "files"}}, "lists file names by split"),
        ({"categorical": {"c": "hash"}}, "encoding 'hash' needs num_embeddings"),
        ({"categorical": {"c": {"weights": "w"}}}, "weights need is_multi_hot=true"),
        ({"text": {"delimeter": ";"}}, "did you mean 'delimiter'"),
    ],
)
def test_wrong_description_is_refused_with_the_way_out(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"label": "y", "files": ["a.csv"], "dense": {"x": "log"}, **changes}
    (tmp_path / "a.csv").write_text("y,x,c,w\n1,1,1,1\n")
    with pytest.raises(ValueError, match=message):
        Table(**given).prepare(tmp_path, tmp_path / "out")
