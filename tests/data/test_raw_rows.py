"""Raw rows for a model: encoded as its training data were, labels or not; written back scored."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recemb.data.avazu import CALENDAR, Avazu
from recemb.data.encoder import RowEncoder
from recemb.data.prepared import Prepared
from recemb.data.raw_rows import RawRows, plain_encoder
from recemb.data.schema import Categorical, Schema
from recemb.data.scored_rows import scored_rows
from recemb.data.table import Table

HEADER = "click,user,price,tags\n"
LINES = ["1,7,2.5,a|b\n", "0,8,,\n", '1,"x,y",-1,c\n', "0,7,0,a\n"]
NEW = [",99,1e3,zzz|a\n", ",8,3.5,\n"]


def table(folder: Path, name: str, **changes: Any) -> Prepared:
    description: dict[str, Any] = {
        "label": "click",
        "files": [name],
        "dense": {"price": "standardise"},
        "categorical": {
            "user": "vocabulary",
            "tags": {"encoding": "hash", "num_embeddings": 50, "is_multi_hot": True},
        },
        "split": {"rule": "value", "column": "click", "train": [0, 1], "val": [], "test": []},
        **changes,
    }
    return Table(**description).prepare(folder, folder / f"prepared-{name}")


def encoder_of(prepared: Prepared) -> RowEncoder:
    return RowEncoder.load(prepared.folder / "encoders", prepared.manifest["encoder"])


def read(prepared: Prepared, path: Path, **options: Any) -> RawRows:
    source = prepared.manifest["settings"]["source"]
    return RawRows(path, encoder_of(prepared), trained_on=source, **options)


def check_equal(rows: RawRows, prepared: Prepared) -> None:
    """Check that a file gives the very batch that preparation made of it."""
    (block,) = rows.blocks()
    (found,) = rows.batches(block, 100)
    (expected,) = prepared.batches("train", batch_size=100)
    assert torch.equal(found.dense, expected.dense)
    assert torch.equal(found.features.values(), expected.features.values())
    assert torch.equal(found.features.lengths(), expected.features.lengths())
    assert found.features.keys() == expected.features.keys()


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    (tmp_path / "train.csv").write_text(HEADER + "".join(LINES))
    return table(tmp_path, "train.csv")


def test_the_training_file_gives_the_training_data(prepared: Prepared, tmp_path: Path) -> None:
    check_equal(read(prepared, tmp_path / "train.csv"), prepared)


def test_labels_are_not_needed(prepared: Prepared, tmp_path: Path) -> None:
    lines = [line.split(",", 1)[1] for line in [HEADER, *LINES]]
    (tmp_path / "new.csv").write_text("".join(lines))
    check_equal(read(prepared, tmp_path / "new.csv"), prepared)


def test_labels_are_not_even_read(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(HEADER + "".join(f"?{line[1:]}" for line in LINES))
    check_equal(read(prepared, tmp_path / "new.csv"), prepared)


def test_tabs_and_gzip_are_recognised(prepared: Prepared, tmp_path: Path) -> None:
    text = (HEADER + "".join(LINES)).replace('"x,y"', "x;y").replace(",", "\t").replace(";", ",")
    (tmp_path / "new.tsv.gz").write_bytes(gzip.compress(text.encode()))
    check_equal(read(prepared, tmp_path / "new.tsv.gz"), prepared)


def test_text_can_be_read_otherwise(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("".join(LINES).replace('"x,y"', "'x,y'"))
    text = {"column_names": ["click", "user", "price", "tags"], "quote": "'"}
    check_equal(read(prepared, tmp_path / "new.txt", text=text), prepared)


def test_parquet_integers_are_the_strings_of_text(prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "new.parquet"
    columns = {"user": pa.array([7, 8, None, 7]), "price": [2.5, None, -1, 0]}
    pq.write_table(pa.table({**columns, "tags": [["a", "b"], [], ["c"], ["a"]]}), path)
    rows = read(prepared, path)
    (block,) = rows.blocks()
    (found,) = rows.batches(block, 100)
    (expected,) = prepared.batches("train", batch_size=100)
    users = expected.features["user"].values().clone()
    users[2] = 0
    assert torch.equal(found.features["user"].values(), users)
    gaps = pa.array([7.0, 8.0, float("nan"), 7.0])
    pq.write_table(pa.table({**columns, "tags": [[], [], [], []], "user": gaps}), path)
    rows = read(prepared, path)
    (block,) = rows.blocks()
    (found,) = rows.batches(block, 100)
    assert torch.equal(found.features["user"].values(), users)


def test_text_for_a_model_of_typed_parquet_is_refused(tmp_path: Path) -> None:
    columns = {"click": [0, 1], "user": [7, 8], "price": [1.0, 2.0], "tags": [["a"], []]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    prepared = table(tmp_path, "train.parquet")
    (tmp_path / "new.csv").write_text(HEADER + "".join(LINES))
    with pytest.raises(ValueError, match=r"trained on Parquet files.*\['user', 'tags'\]"):
        read(prepared, tmp_path / "new.csv")
    check_equal(read(prepared, tmp_path / "train.parquet"), prepared)


def test_a_file_without_header_may_lack_the_label(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(LINES))
    names = {"column_names": ["click", "user", "price", "tags"]}
    prepared = table(tmp_path, "train.txt", text=names)
    check_equal(read(prepared, tmp_path / "train.txt"), prepared)
    (tmp_path / "new.txt").write_text("".join(line.split(",", 1)[1] for line in LINES))
    check_equal(read(prepared, tmp_path / "new.txt"), prepared)


def test_unseen_values_get_the_out_of_vocabulary_id(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(HEADER + "".join(NEW))
    rows = read(prepared, tmp_path / "new.csv")
    (block,) = rows.blocks()
    (found,) = rows.batches(block, 100)
    (known,) = prepared.batches("train", batch_size=100)
    assert found.features["user"].values().tolist()[0] == 0
    assert found.features["user"].values()[1] == known.features["user"].values()[1]


def test_small_batches_are_pieces_of_the_large_one(prepared: Prepared, tmp_path: Path) -> None:
    rows = read(prepared, tmp_path / "train.csv")
    (block,) = rows.blocks()
    (whole,) = rows.batches(block, 100)
    parts = list(rows.batches(block, 3))
    assert [len(part) for part in parts] == [3, 1]
    assert torch.equal(torch.cat([part.dense for part in parts]), whole.dense)
    for name in ("user", "tags"):
        values = torch.cat([part.features[name].values() for part in parts])
        assert torch.equal(values, whole.features[name].values())


def test_a_missing_column_is_named(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("user;price\n1;2\n")
    with pytest.raises(ValueError, match=r"needs columns \['price', 'user', 'tags'\]"):
        read(prepared, tmp_path / "new.csv")


def test_a_bad_value_is_named_with_its_line(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(HEADER + LINES[0] + "0,7,dear,a\n")
    with pytest.raises(ValueError, match=r"new.csv:3: column 'price' has value 'dear'"):
        list(read(prepared, tmp_path / "new.csv").blocks())


def test_unknown_settings_of_text_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text has no key \['seperator'\]"):
        read(prepared, tmp_path / "train.csv", text={"seperator": ";"})


def avazu_line(hour: int) -> str:
    return ",".join(["1", "0", str(hour), *(["v"] * 21)])


def test_derived_columns_are_derived_again(tmp_path: Path) -> None:
    dataset = Avazu(min_count=1)
    names = [c.name for c in dataset.columns.categorical if c.name not in CALENDAR]
    header = ",".join(["id", "click", "hour", *names, "left"][: 3 + 21])
    rows = [avazu_line(14102100 + hour) for hour in range(24)]
    (tmp_path / "train.csv").write_text("\n".join([header, *rows]) + "\n")
    prepared = dataset.prepare(tmp_path, tmp_path / "prepared")
    found = read(prepared, tmp_path / "train.csv")
    (block,) = found.blocks()
    (batch,) = found.batches(block, 100)
    # 21 October 2014 was a Tuesday.
    assert batch.features["hour_of_day"].values().tolist() == list(range(24))
    assert set(batch.features["weekday"].values().tolist()) == {1}


def test_columns_that_only_preparation_can_make_are_named(
    prepared: Prepared, tmp_path: Path
) -> None:
    source = {**prepared.manifest["settings"]["source"], "derivation": "profile 1"}
    (tmp_path / "new.csv").write_text("user,price\n1,2\n")
    with pytest.raises(ValueError, match=r"\['tags'\].*preparation makes.*'profile 1'"):
        RawRows(tmp_path / "new.csv", encoder_of(prepared), trained_on=source)


def test_generated_data_are_their_own_raw_form(tmp_path: Path) -> None:
    schema = Schema(dense=("x",), categorical=(Categorical(name="f", num_embeddings=9),), label="y")
    x = np.random.default_rng(0).normal(size=5).astype(np.float32)
    lines = [f"{float(v)!r},{i}\n" for i, v in enumerate(x)]
    (tmp_path / "new.csv").write_text("x,f\n" + "".join(lines))
    rows = RawRows(tmp_path / "new.csv", plain_encoder(schema), trained_on={})
    (block,) = rows.blocks()
    (batch,) = rows.batches(block, 100)
    assert np.array_equal(batch.dense.numpy()[:, 0], x)
    assert batch.features["f"].values().tolist() == list(range(5))
    (tmp_path / "new.csv").write_text("x,f\n1,9\n")
    with pytest.raises(ValueError, match=r"column 'f' has value '9', which is not an id in \[0, 9"):
        list(RawRows(tmp_path / "new.csv", plain_encoder(schema), trained_on={}).blocks())


def scored(rows: RawRows, out: Path) -> Path:
    """Write the number of each good row, over eight, as its probability."""
    number = 0
    with scored_rows(rows, out, out.name) as written:
        for block in rows.blocks():
            found = np.full(len(block.is_good), np.nan, np.float32)
            found[block.is_good] = number + 1 + np.arange(block.is_good.sum())
            number += int(block.is_good.sum())
            written.write(block.block, found / 8)
    return out


def test_lines_are_written_as_they_are(prepared: Prepared, tmp_path: Path) -> None:
    lines = [HEADER, LINES[2].replace("\n", "\r\n"), "\n", "0,7,dear,a\n", "0,7,too,many,x\n"]
    (tmp_path / "new.csv").write_bytes("".join([*lines, LINES[0].strip()]).encode())
    rows = read(prepared, tmp_path / "new.csv", on_bad_line="skip")
    expected = (
        "click,user,price,tags,probability\n"
        '1,"x,y",-1,c,0.125\r\n0,7,dear,a,\n0,7,too,many,x,\n1,7,2.5,a|b,0.25\n'
    )
    assert scored(rows, tmp_path / "out.csv").read_bytes().decode() == expected
    packed = scored(rows, tmp_path / "out.csv.gz").read_bytes()
    assert gzip.decompress(packed).decode() == expected


def test_the_number_of_a_text_reads_back_the_same(prepared: Prepared, tmp_path: Path) -> None:
    found = np.random.default_rng(0).random(4).astype(np.float32)
    rows = read(prepared, tmp_path / "train.csv")
    with scored_rows(rows, tmp_path / "out.csv", "out.csv") as written:
        written.write(next(rows.blocks()).block, found)
    texts = [line.rsplit(",", 1)[1] for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert np.array_equal(np.array(texts[1:], np.float32), found)


def test_parquet_rows_keep_their_columns(tmp_path: Path) -> None:
    columns = {
        "click": [0, 1, 1],
        "other": ["p", "q", "r"],
        "user": [7, 8, 7],
        "price": ["1", "2", "dear"],
        "tags": [["a"], [], ["b"]],
    }
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    prepared = table(tmp_path, "train.parquet", on_bad_line="skip")
    rows = read(prepared, tmp_path / "train.parquet", on_bad_line="skip")
    found = pq.read_table(scored(rows, tmp_path / "out.parquet"))
    assert found.column_names == [*columns, "probability"]
    assert found.drop(["probability"]).to_pydict() == columns
    assert found.column("probability").null_count == 1


def test_another_format_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out.parquet: the rows are text"):
        scored(read(prepared, tmp_path / "train.csv"), tmp_path / "out.parquet")


def test_a_column_of_that_name_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("user,price,tags,probability\n1,2,a,0\n")
    with pytest.raises(ValueError, match="a column 'probability' already"):
        scored(read(prepared, tmp_path / "new.csv"), tmp_path / "out.csv")
