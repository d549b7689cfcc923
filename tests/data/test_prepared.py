"""Prepared sets give back what was written, whole, in a known order."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recemb.data.batch import Batch
from recemb.data.encoded import Bags, EncodedRows
from recemb.data.prepared import Prepared
from recemb.data.schema import Categorical, Schema
from recemb.data.writer import Writer

SCHEMA = Schema(
    dense=("x", "y"),
    categorical=(
        Categorical(name="a", num_embeddings=50),
        Categorical(name="tags", num_embeddings=9, is_multi_hot=True, is_weighted=True),
        Categorical(name="b", num_embeddings=7),
        Categorical(name="plain", num_embeddings=5, is_multi_hot=True),
    ),
    label="click",
    group="user",
)


def random_rows(num_rows: int, seed: int) -> EncodedRows:
    rng = np.random.default_rng(seed)
    lengths = [rng.integers(0, 4, num_rows) for _ in range(2)]
    return EncodedRows(
        labels=rng.integers(0, 2, num_rows).astype(np.uint8),
        dense=rng.standard_normal((num_rows, 2)).astype(np.float32),
        ids=np.stack([rng.integers(0, 50, num_rows), rng.integers(0, 7, num_rows)], 1).astype(
            np.int32
        ),
        bags=(
            Bags(
                values=rng.integers(0, 9, lengths[0].sum()).astype(np.int32),
                lengths=lengths[0],
                weights=rng.random(lengths[0].sum()).astype(np.float32),
            ),
            Bags(values=rng.integers(0, 5, lengths[1].sum()).astype(np.int32), lengths=lengths[1]),
        ),
        groups=np.arange(num_rows),
    )


def write(folder: Path, parts: dict[str, list[EncodedRows]], schema: Schema = SCHEMA) -> Prepared:
    folder.mkdir(parents=True)
    with Writer(folder, schema) as writer:
        for split, rows in parts.items():
            for part in rows:
                writer.append(split, part)
        writer.finish({"name": "test", "settings": {}, "sources": []})
    return Prepared(folder)


@pytest.fixture
def parts() -> dict[str, list[EncodedRows]]:
    return {
        "train": [random_rows(40, 0), random_rows(0, 1), random_rows(61, 2)],
        "test": [random_rows(13, 3)],
    }


@pytest.fixture
def prepared(tmp_path: Path, parts: dict[str, list[EncodedRows]]) -> Prepared:
    return write(tmp_path / "set", parts)


def as_rows(batch: Batch) -> list[tuple[object, ...]]:
    """Return each example as plain Python values."""
    features = batch.features.to_dict()
    assert batch.groups is not None
    rows = []
    for i in range(len(batch)):
        bags = []
        for name in batch.features.keys():  # noqa: SIM118 (a KeyedJaggedTensor, not a dict)
            start, stop = features[name].offsets()[i : i + 2].tolist()
            bags.append(
                (
                    features[name].values()[start:stop].tolist(),
                    features[name].weights()[start:stop].tolist(),
                )
            )
        rows.append((float(batch.labels[i]), batch.dense[i].tolist(), int(batch.groups[i]), *bags))
    return rows


def expected_rows(parts: list[EncodedRows]) -> list[tuple[object, ...]]:
    rows = []
    for part in parts:
        ends = [np.cumsum(bag.lengths) for bag in part.bags]
        for i in range(len(part)):
            bags = [
                part.bags[j].values[ends[j][i] - part.bags[j].lengths[i] : ends[j][i]].tolist()
                for j in range(2)
            ]
            weights = part.bags[0].weights
            assert weights is not None
            assert part.groups is not None
            rows.append(
                (
                    float(part.labels[i]),
                    part.dense[i].tolist(),
                    int(part.groups[i]),
                    ([int(part.ids[i, 0])], [1.0]),
                    (bags[0], weights[ends[0][i] - len(bags[0]) : ends[0][i]].tolist()),
                    ([int(part.ids[i, 1])], [1.0]),
                    (bags[1], [1.0] * len(bags[1])),
                )
            )
    return rows


def test_a_rank_without_examples_gets_a_batch_of_none(prepared: Prepared) -> None:
    none = next(prepared.batches("train", batch_size=1, rank=0, world_size=2))
    assert len(none) == none.features.stride() == 0
    assert none.features.keys() == ["a", "tags", "b", "plain"]
    assert none.features["tags"].to_dense() == []
    assert none.features["plain"].values().numel() == 0


@pytest.mark.parametrize("batch_size", [1, 7, 101, 500])
def test_batches_in_order_give_back_the_written_rows(
    prepared: Prepared, parts: dict[str, list[EncodedRows]], batch_size: int
) -> None:
    rows = [r for b in prepared.batches("train", batch_size=batch_size) for r in as_rows(b)]
    assert rows == expected_rows(parts["train"])


def test_shuffled_batches_hold_each_row_once(
    prepared: Prepared, parts: dict[str, list[EncodedRows]]
) -> None:
    batches = prepared.batches("train", batch_size=8, shuffle=True, seed=5)
    rows = [r for b in batches for r in as_rows(b)]
    expected = expected_rows(parts["train"])
    assert rows != expected
    assert sorted(map(repr, rows)) == sorted(map(repr, expected))


def test_keys_are_in_the_schemas_order(prepared: Prepared) -> None:
    batch = next(prepared.batches("test", batch_size=4))
    assert batch.features.keys() == ["a", "tags", "b", "plain"]


def test_keyed_tensor_knows_its_own_lengths(prepared: Prepared) -> None:
    # length_per_key and offset_per_key are handed over; TorchRec would compute the same.
    features = next(prepared.batches("test", batch_size=4)).features
    lengths = features.lengths().view(4, -1).sum(1).tolist()
    assert features.length_per_key() == lengths
    assert features.offset_per_key() == np.cumsum([0, *lengths]).tolist()


def test_ids_are_int64_and_dense_is_float32(prepared: Prepared) -> None:
    batch = next(prepared.batches("test", batch_size=4))
    assert batch.features.values().dtype == torch.int64
    assert batch.dense.dtype == batch.labels.dtype == torch.float32


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("first_batch", [0, 1, 5, 12, 13])
def test_resumed_batches_equal_the_rest_of_undisturbed_ones(
    prepared: Prepared, shuffle: bool, first_batch: int
) -> None:
    def rows(first: int) -> list[list[tuple[object, ...]]]:
        batches = prepared.batches(
            "train", batch_size=8, shuffle=shuffle, epoch=2, first_batch=first
        )
        return [as_rows(b) for b in batches]

    assert rows(first_batch) == rows(0)[first_batch:]


def test_ranks_read_disjoint_rows_in_equally_many_batches(prepared: Prepared) -> None:
    by_rank = [
        [
            [int(g) for g in b.groups]
            for b in prepared.batches("train", batch_size=8, shuffle=True, rank=r, world_size=3)
        ]
        for r in range(3)
    ]
    assert len({len(batches) for batches in by_rank}) == 1
    assert len(by_rank[0]) == prepared.num_batches("train", batch_size=8, rank=1, world_size=3)
    # Two parts were written, so groups 0 to 39 occur twice.
    groups = sorted(g for batches in by_rank for batch in batches for g in batch)
    assert groups == sorted([*range(40), *range(61)])


def test_closing_the_iterator_ends_its_thread(prepared: Prepared) -> None:
    import threading

    batches = prepared.batches("train", batch_size=1)
    next(batches)
    batches.close()
    assert not any(t.name == "recemb-prefetch" for t in threading.enumerate())


def test_id_counts_are_those_of_the_training_split(
    prepared: Prepared, parts: dict[str, list[EncodedRows]]
) -> None:
    a = np.concatenate([p.ids[:, 0] for p in parts["train"]])
    tags = np.concatenate([p.bags[0].values for p in parts["train"]])
    assert prepared.id_counts("a").tolist() == np.bincount(a, minlength=50).tolist()
    assert prepared.id_counts("tags").tolist() == np.bincount(tags, minlength=9).tolist()


def test_one_hot_sets_give_the_same_batches_as_the_general_path(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    schema = Schema(
        dense=(),
        categorical=tuple(Categorical(name=f"f{i}", num_embeddings=100) for i in range(5)),
        label="y",
    )
    ids = rng.integers(0, 100, (23, 5)).astype(np.int32)
    rows = EncodedRows(labels=np.zeros(23, np.uint8), dense=np.empty((23, 0), np.float32), ids=ids)
    batch = next(
        write(tmp_path / "one_hot", {"train": [rows]}, schema).batches("train", batch_size=10)
    )
    assert batch.groups is None
    assert batch.dense.shape == (10, 0)
    assert batch.features.values().view(5, 10).tolist() == ids[:10].T.tolist()
    assert batch.features.lengths().tolist() == [1] * 50
    assert batch.features.offset_per_key() == [0, 10, 20, 30, 40, 50]


def test_set_without_manifest_does_not_open(prepared: Prepared) -> None:
    (prepared.folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no complete prepared set"):
        Prepared(prepared.folder)


def test_truncated_file_does_not_open(prepared: Prepared) -> None:
    path = prepared.folder / "train" / "ids.i32"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"ids\.i32 has 804 bytes, but manifest\.json says 808"):
        Prepared(prepared.folder)


def test_missing_file_does_not_open(prepared: Prepared) -> None:
    (prepared.folder / "counts" / "0.i64").unlink()
    with pytest.raises(ValueError, match="is missing"):
        Prepared(prepared.folder)


def test_other_format_version_does_not_open(prepared: Prepared) -> None:
    path = prepared.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="has format 99"):
        Prepared(prepared.folder)


def test_verify_notices_a_flipped_bit(prepared: Prepared) -> None:
    prepared.verify()
    path = prepared.folder / "train" / "dense.f32"
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"dense\.f32 has changed since it was written"):
        Prepared(prepared.folder).verify()


def test_unknown_split_and_feature_are_named(prepared: Prepared) -> None:
    with pytest.raises(ValueError, match="has no split 'val'; it has"):
        prepared.num_rows("val")
    with pytest.raises(ValueError, match="has no feature 'c'; it has"):
        prepared.id_counts("c")


def test_first_batch_out_of_range_is_refused_at_once(prepared: Prepared) -> None:
    with pytest.raises(ValueError, match=r"first_batch must be in \[0, 13\], got 14"):
        prepared.batches("train", batch_size=8, first_batch=14)


def _own_bytes() -> int:
    """Return the process's memory that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux reports RssAnon")


def test_reading_an_epoch_does_not_bring_the_set_into_memory(tmp_path: Path) -> None:
    num_rows, num_dense = 100_000, 200  # 80 MB of dense values
    schema = Schema(dense=tuple(f"d{j}" for j in range(num_dense)), categorical=(), label="y")
    part = EncodedRows(
        labels=np.zeros(10_000, np.uint8),
        dense=np.ones((10_000, num_dense), np.float32),
        ids=np.empty((10_000, 0), np.int32),
    )
    prepared = write(tmp_path / "big", {"train": [part] * 10}, schema)
    batches = prepared.batches("train", batch_size=1000, shuffle=True)
    next(batches)
    before = _own_bytes()
    assert sum(float(b.dense[0, 0]) for b in batches) == num_rows / 1000 - 1
    assert _own_bytes() - before < num_rows * num_dense * 4 / 4
