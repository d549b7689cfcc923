"""Frappe in the layout of BARS frappe_x1, on files with made-up rows."""

import gzip
import os
from pathlib import Path

import pytest
import torch

from recemb.data.frappe import FEATURES, Frappe
from recemb.data.prepared import Prepared

HEADER = "label," + ",".join(FEATURES)


def row(label: int, user: int, item: int, city: int = 901) -> str:
    return f"{label},{user},{item},101,201,301,401,501,601,701,{city}"


TRAIN = [row(1, 1, 11), row(0, 1, 12), row(0, 2, 11), row(1, 2, 11)]
VALID = [row(1, 2, 13), row(0, 3, 12)]
TEST = [row(0, 1, 11)]


def write(folder: Path, *, packed: bool = False) -> Path:
    folder.mkdir()
    for name, rows in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        text = "\n".join([HEADER, *rows, ""]).encode()
        if packed:
            (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text))
        else:
            (folder / f"{name}.csv").write_bytes(text)
    return folder


def ids(prepared: Prepared, split: str, feature: str) -> list[int]:
    batch = next(prepared.batches(split, batch_size=100))
    values: list[int] = batch.features[feature].values().tolist()
    return values


def test_each_file_is_a_split(tmp_path: Path) -> None:
    prepared = Frappe().prepare(write(tmp_path / "raw"), tmp_path / "out")
    assert {s: prepared.num_rows(s) for s in prepared.splits} == {"train": 4, "val": 2, "test": 1}


def test_packed_files_give_the_same_set_as_plain_ones(tmp_path: Path) -> None:
    plain = Frappe().prepare(write(tmp_path / "plain"), tmp_path / "a")
    packed = Frappe().prepare(write(tmp_path / "packed", packed=True), tmp_path / "b")
    assert plain.manifest["files"] == packed.manifest["files"]


def test_features_are_the_ten_columns_in_order(tmp_path: Path) -> None:
    prepared = Frappe().prepare(write(tmp_path / "raw"), tmp_path / "out")
    assert prepared.schema.feature_names == FEATURES
    assert prepared.schema.dense == ()


def test_values_that_training_does_not_have_get_id_zero(tmp_path: Path) -> None:
    prepared = Frappe().prepare(write(tmp_path / "raw"), tmp_path / "out")
    assert ids(prepared, "train", "item") == [1, 2, 1, 1]  # 11 is the more frequent one
    assert ids(prepared, "val", "item") == [0, 2]
    assert ids(prepared, "val", "user")[1] == 0


def test_min_count_counts_training_rows_only(tmp_path: Path) -> None:
    prepared = Frappe(min_count=2).prepare(write(tmp_path / "raw"), tmp_path / "out")
    assert ids(prepared, "train", "item") == [1, 0, 1, 1]  # 12 occurs once in train, once in val


def test_labels_are_those_of_the_file(tmp_path: Path) -> None:
    prepared = Frappe().prepare(write(tmp_path / "raw"), tmp_path / "out")
    batch = next(prepared.batches("train", batch_size=4))
    assert torch.equal(batch.labels, torch.tensor([1.0, 0.0, 0.0, 1.0]))


def test_examples_are_grouped_by_user(tmp_path: Path) -> None:
    prepared = Frappe().prepare(write(tmp_path / "raw"), tmp_path / "out")
    batch = next(prepared.batches("train", batch_size=4))
    assert batch.groups is not None
    assert batch.groups.tolist() == [1, 1, 2, 2]


def test_groups_can_be_left_out(tmp_path: Path) -> None:
    prepared = Frappe(group=None).prepare(write(tmp_path / "raw"), tmp_path / "out")
    assert next(prepared.batches("val", batch_size=4)).groups is None


def test_missing_file_says_where_it_was_sought_and_how_to_get_it(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw")
    (raw / "valid.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"raw holds no valid\.csv.*fetch Frappe_x1"):
        Frappe().prepare(raw, tmp_path / "out")


def test_missing_folder_says_how_to_get_the_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; fetch Frappe_x1"):
        Frappe().prepare(tmp_path / "nowhere", tmp_path / "out")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw")
    with pytest.raises(ValueError, match=r"train\.csv is a file, but raw must be the folder"):
        Frappe().prepare(raw / "train.csv", tmp_path / "out")


@pytest.mark.skipif("RECEMB_DATA" not in os.environ, reason="needs Frappe under RECEMB_DATA")
def test_real_set_has_the_published_rows_of_validation_and_test(tmp_path: Path) -> None:
    prepared = Frappe().prepare(Path(os.environ["RECEMB_DATA"]) / "frappe", tmp_path / "out")
    assert prepared.num_rows("train") == 202_027
    assert prepared.num_rows("val") == 57_722
    assert prepared.num_rows("test") == 28_860
    assert sum(c.num_embeddings - 1 for c in prepared.schema.categorical) <= 5382
