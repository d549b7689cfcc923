"""Encoders survive a round trip, and pick the documented keys."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recemb.data.check import checked
from recemb.data.column import CategoricalColumn, Columns, DenseColumn, LabelColumn
from recemb.data.encoder import MISSING_KEY, RowEncoder, gather, keyed
from recemb.data.source import Chunk
from recemb.ids.hashing import hash_strings

COLUMNS = Columns(
    label=LabelColumn(name="y"),
    dense=(DenseColumn(name="x", transform="standardise"),),
    categorical=(
        CategoricalColumn(name="word"),
        CategoricalColumn(name="hashed", column="word", encoding="hash", num_embeddings=5),
        CategoricalColumn(name="tags", is_multi_hot=True, weights="weights"),
    ),
    group="word",
)


def table() -> pa.Table:
    raw = pa.table(
        {
            "y": [1, 0, 1, 0],
            "x": [1.0, 2.0, None, 6.0],
            "word": ["a", "b", "a", "c"],
            "tags": ["p|q", "", None, "q"],
            "weights": ["1|2", "", None, "0.5"],
        }
    )
    places = np.arange(4)
    chunk = Chunk(table=raw, file=Path("raw"), lines=places + 1, rows=places)
    return checked(chunk, COLUMNS, "raise").table


def test_loaded_encoder_encodes_as_the_saved_one(tmp_path: Path) -> None:
    fitted = RowEncoder.fitted(COLUMNS, gather(COLUMNS, table()), seed=3)
    loaded = RowEncoder.load(tmp_path, fitted.save(tmp_path))
    assert loaded.schema == fitted.schema
    before, after = fitted.encode(table()), loaded.encode(table())
    for name in ("labels", "dense", "ids", "groups"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    for bag, other in zip(before.bags, after.bags, strict=True):
        np.testing.assert_array_equal(bag.values, other.values)
        np.testing.assert_array_equal(bag.lengths, other.lengths)


def test_statistics_of_parts_merge_to_those_of_the_whole() -> None:
    whole = gather(COLUMNS, table())
    merged = gather(COLUMNS, table().slice(0, 1))
    merged.merge(gather(COLUMNS, table().slice(1)))
    for name, counts in whole.counts.items():
        for expected, found in zip(counts.result(), merged.counts[name].result(), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert merged.moments["x"].mean == pytest.approx(3.0)
    # Values 1, 2 and 6: the squared distances from 3 are 4, 1 and 9.
    assert merged.moments["x"].std == pytest.approx(np.sqrt(14 / 3))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_keys_of_strings_are_their_hashes_whatever_the_arrow_type(kind: pa.DataType) -> None:
    column = keyed(pa.array(["b", None, "a", "b"]).cast(kind))
    b, a = hash_strings(pa.array(["b", "a"])).tolist()
    assert column.keys[column.places].tolist() == [b, MISSING_KEY, a, b]


def test_keys_of_integers_are_themselves() -> None:
    column = keyed(pa.array([7, None, -(2**62)]))
    assert column.keys[column.places].tolist() == [7, MISSING_KEY, -(2**62)]
