"""Histories cut out of what is stored once for each user."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recemb.data.behaviours import history_counts
from recemb.data.encoded import EncodedRows
from recemb.data.prepared import Prepared
from recemb.data.schema import Categorical, History, Schema
from recemb.data.writer import Writer

SCHEMA = Schema(
    dense=(),
    categorical=(
        Categorical(name="item", num_embeddings=10),
        Categorical(name="place", num_embeddings=5),
    ),
    label="label",
    histories=(
        History(name="items", of="item"),
        History(name="places", of="place", is_position=True),
    ),
)
LOG = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
SPANS = {"train": [[0, 4], [2, 5], [5, 5], [4, 8]], "val": [[1, 3]]}


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    folder = tmp_path / "set"
    folder.mkdir()
    with Writer(folder, SCHEMA) as writer:
        assert writer.append_behaviours([LOG[:5]]) == 0
        assert writer.append_behaviours([LOG[5:]]) == 5
        for split, spans in SPANS.items():
            rows = EncodedRows(
                labels=np.zeros(len(spans), np.uint8),
                dense=np.empty((len(spans), 0), np.float32),
                ids=np.zeros((len(spans), 2), np.int32),
                spans=np.array(spans),
            )
            writer.append(split, rows)
        writer.finish({"name": "test", "settings": {}, "sources": []})
    return Prepared(folder)


def histories(prepared: Prepared, name: str, **order: object) -> list[list[int]]:
    batch = next(prepared.batches("train", batch_size=4, **order))
    return [ids.tolist() for ids in batch.features[name].to_dense()]


def test_a_history_is_the_slice_that_its_span_says(prepared: Prepared) -> None:
    expected = [LOG[first:end].tolist() for first, end in SPANS["train"]]
    assert histories(prepared, "items") == expected


def test_positions_count_back_from_the_most_recent_behaviour(prepared: Prepared) -> None:
    assert histories(prepared, "places") == [[4, 3, 2, 1], [3, 2, 1], [], [4, 3, 2, 1]]


def test_shuffled_rows_take_their_histories_with_them(prepared: Prepared) -> None:
    shuffled = histories(prepared, "items", shuffle=True, seed=3)
    assert sorted(shuffled) == sorted(histories(prepared, "items"))


def test_behaviours_are_stored_once_however_many_samples_read_them(prepared: Prepared) -> None:
    assert (prepared.folder / "behaviours/0.i32").stat().st_size == 4 * len(LOG)


def test_keys_are_the_columns_and_then_the_histories(prepared: Prepared) -> None:
    batch = next(prepared.batches("val", batch_size=4))
    assert batch.features.keys() == ["item", "place", "items", "places"]
    assert batch.features["items"].values().dtype == torch.int64


def test_id_counts_of_a_history_are_those_of_training_histories(prepared: Prepared) -> None:
    seen = np.concatenate([LOG[first:end] for first, end in SPANS["train"]])
    assert prepared.id_counts("items").tolist() == np.bincount(seen, minlength=10).tolist()
    assert prepared.id_counts("places").tolist() == [0, 3, 3, 3, 2]


def test_schema_survives_the_manifest(prepared: Prepared) -> None:
    assert prepared.schema == SCHEMA


def test_every_behaviour_is_counted_in_the_histories_that_hold_it() -> None:
    draw = np.random.default_rng(0)
    firsts = draw.integers(0, 50, 200)
    spans = np.stack([firsts, firsts + draw.integers(0, 10, 200)], axis=1)
    uses, by_length = history_counts(spans, 60)
    slow = np.zeros(60, int)
    for first, end in spans:
        slow[first:end] += 1
    assert uses.tolist() == slow.tolist()
    assert by_length.tolist() == np.bincount(spans[:, 1] - spans[:, 0]).tolist()


def test_a_history_of_a_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="history 'items': it is of 'thing'"):
        Schema(
            dense=(),
            categorical=SCHEMA.categorical,
            label="label",
            histories=(History(name="items", of="thing"),),
        )
