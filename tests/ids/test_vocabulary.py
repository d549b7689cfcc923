"""Vocabularies order by count and survive a round trip."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.ids.vocabulary import Vocabulary


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5), max_size=200), st.integers(1, 4), st.integers(1, 8))
def test_ids_follow_descending_count_then_key(raw: list[int], min_count: int, limit: int) -> None:
    counted = Counter(raw)
    kept = [k for k, n in sorted(counted.items(), key=lambda p: (-p[1], p[0])) if n >= min_count]
    expected = {k: i + 1 for i, k in enumerate(kept[: limit - 1])}
    vocabulary = Vocabulary.from_counts(
        np.array(list(counted), np.int64),
        np.array(list(counted.values()), np.int64),
        min_count=min_count,
        max_embeddings=limit,
    )
    probes = np.arange(-7, 8)
    assert vocabulary.encode(probes).tolist() == [expected.get(int(p), 0) for p in probes]
    assert vocabulary.num_embeddings == len(expected) + 1


def test_saved_vocabulary_encodes_the_same(tmp_path: Path) -> None:
    keys = np.array([5, -(2**63), 2**63 - 1, 0], np.int64)
    Vocabulary(keys).save(tmp_path / "keys")
    assert Vocabulary.load(tmp_path / "keys").encode(keys).tolist() == [1, 2, 3, 4]


def test_key_that_occurs_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="key 3 occurs twice"):
        Vocabulary(np.array([3, 1, 3]))


@pytest.mark.parametrize("field", ["min_count", "max_embeddings"])
def test_limits_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        Vocabulary.from_counts(np.array([1]), np.array([1]), **{field: 0})
