"""Chunked statistics equal those of the whole."""

from collections import Counter

import numpy as np
import pytest

from recemb.ids.statistics import KeyCounts, Moments


def test_merged_counts_equal_those_of_all_chunks_together() -> None:
    rng = np.random.default_rng(0)
    counts, expected = KeyCounts(), Counter[int]()
    for _ in range(40):  # enough to merge several times
        keys = rng.integers(-(2**40), 2**40, 3000) // 2**27
        counts.add(keys, np.ones(len(keys), np.int64))
        expected.update(keys.tolist())
    keys, found = counts.result()
    assert dict(zip(keys.tolist(), found.tolist(), strict=True)) == expected
    assert (np.diff(keys) > 0).all()


def test_no_values_give_no_counts() -> None:
    keys, counts = KeyCounts().result()
    assert keys.size == counts.size == 0


def test_merged_moments_equal_numpys_over_all_values() -> None:
    # A mean far from 0 makes the naive sum of squares fail.
    values = np.random.default_rng(1).normal(1e8, 3.0, 10_000)
    moments = Moments()
    for part in np.array_split(values, [0, 1, 17, 5000]):
        moments.add(part)
    assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
    assert moments.std == pytest.approx(values.std(), rel=1e-6)


def test_no_values_have_deviation_zero() -> None:
    assert Moments().std == 0.0
