"""Hashes agree with slow integer implementations and with published vectors."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.ids.hashing import hash_rows, hash_rows_torch, hash_seed, hash_strings, mix64

MASK32 = 2**32 - 1
MASK64 = 2**64 - 1
EDGES = [0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**32, -(2**32), 2**63 - 1, -(2**63), 2**62 + 5]
ROW_COUNTS = [1, 2, 7, 1000, 2**20, 2**31 - 1]


def slow_murmur3_32(data: bytes, seed: int) -> int:
    """MurmurHash3_x86_32 for whole 4-byte words, from its published description."""
    h = seed
    for i in range(0, len(data), 4):
        k = int.from_bytes(data[i : i + 4], "little") * 0xCC9E2D51 & MASK32
        k = ((k << 15) | (k >> 17)) & MASK32
        h ^= k * 0x1B873593 & MASK32
        h = ((h << 13) | (h >> 19)) & MASK32
        h = (h * 5 + 0xE6546B64) & MASK32
    return slow_fmix32(h ^ len(data))


def slow_fmix32(h: int) -> int:
    h ^= h >> 16
    h = h * 0x85EBCA6B & MASK32
    h ^= h >> 13
    h = h * 0xC2B2AE35 & MASK32
    return h ^ (h >> 16)


def slow_mix64(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK64
    return z ^ (z >> 31)


def slow_row(key: int, seed: int, num_rows: int) -> int:
    h = slow_fmix32((key & MASK32) ^ seed)
    h = slow_fmix32(h ^ ((key >> 32) & MASK32))
    return h * num_rows >> 32


def slow_string_key(text: str) -> int:
    data = text.encode()
    h = len(data) * 0x9E3779B97F4A7C15 & MASK64
    for i in range(0, len(data), 8):
        h = slow_mix64(h ^ int.from_bytes(data[i : i + 8], "little"))
    return h - 2**64 if h >= 2**63 else h


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 1, 0x514E28B7),
        (b"", 0xFFFFFFFF, 0x81F16F39),
        (b"\x00\x00\x00\x00", 0, 0x2362F9DE),
        (b"\xff\xff\xff\xff", 0, 0x76293B50),
        (b"test", 0, 0xBA6BD213),
    ],
)
def test_slow_finaliser_gives_the_published_murmur3_vectors(
    data: bytes, seed: int, expected: int
) -> None:
    assert slow_murmur3_32(data, seed) == expected


def test_mix64_gives_the_published_splitmix64_stream_of_seed_1234567() -> None:
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = [(1234567 + (i + 1) * 0x9E3779B97F4A7C15) & MASK64 for i in range(5)]
    assert mix64(np.array(states, np.uint64)).tolist() == published
    assert [slow_mix64(s) for s in states] == published


@pytest.mark.parametrize("num_rows", ROW_COUNTS)
@pytest.mark.parametrize("seed", [0, 1, 0xDEADBEEF, MASK32])
def test_numpy_and_torch_rows_equal_the_slow_ones(num_rows: int, seed: int) -> None:
    random = np.random.default_rng(0).integers(-(2**63), 2**63, 1000, dtype=np.int64)
    keys = np.concatenate([np.array(EDGES, np.int64), random])
    expected = [slow_row(int(k), seed, num_rows) for k in keys]
    assert hash_rows(keys, seed, num_rows).tolist() == expected
    assert hash_rows_torch(torch.from_numpy(keys), seed, num_rows).tolist() == expected


def test_golden_rows_never_change() -> None:
    # Made with slow_row above, whose finaliser the published vectors confirm.
    rows = hash_rows(np.array([0, -1, 2**40]), 42, 10**6)
    assert rows.tolist() == [725994, 478183, 84933]


@pytest.mark.parametrize("num_rows", [0, -1, 2**31])
def test_row_count_out_of_range_is_refused(num_rows: int) -> None:
    with pytest.raises(ValueError, match="num_rows must be in"):
        hash_rows(np.array([1]), 0, num_rows)
    with pytest.raises(ValueError, match="num_rows must be in"):
        hash_rows_torch(torch.tensor([1]), 0, num_rows)


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=30))
def test_string_keys_equal_the_slow_ones(texts: list[str]) -> None:
    expected = [slow_string_key(t) for t in texts]
    for kind in (pa.string(), pa.large_string()):
        assert hash_strings(pa.array(texts, kind)).tolist() == expected


def test_string_keys_of_a_slice_ignore_what_lies_around_it() -> None:
    texts = ["a", "longer than eight bytes", "", "éß", "x" * 100]
    sliced = pa.array(["before", *texts, "after"]).slice(1, len(texts))
    assert hash_strings(sliced).tolist() == [slow_string_key(t) for t in texts]


def test_string_key_of_null_is_that_of_the_empty_string() -> None:
    assert hash_strings(pa.array(["a", None])).tolist() == [slow_string_key("a"), 0]


def test_hash_seed_depends_on_name_probe_and_global_seed() -> None:
    seeds = {hash_seed(s, n, p) for s in (0, 1) for n in ("user", "item") for p in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= s <= MASK32 for s in seeds)


def test_hash_seed_is_the_fmix32_chain_of_seed_name_and_probe() -> None:
    key = slow_string_key("user")
    h = slow_fmix32(7)
    for word in (key & MASK32, (key >> 32) & MASK32, 3):
        h = slow_fmix32(h ^ word)
    assert hash_seed(7, "user", 3) == h


def test_rows_are_spread_evenly() -> None:
    rows = hash_rows(np.arange(100_000), hash_seed(0, "f"), 100)
    counts = np.bincount(rows, minlength=100)
    # Chi-squared with 99 degrees of freedom: mean 99, deviation 14; 200 is seven deviations out.
    assert float((np.square(counts - 1000) / 1000).sum()) < 200
