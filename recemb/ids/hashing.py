"""Raw values to 64-bit keys, and keys to rows: seeded, the same on every platform.

Two steps, both frozen; the tests hold golden values.

1. A raw value becomes a key, int64. Integers are their own key. A string's key is a 64-bit hash of
   its UTF-8 bytes: with the bytes cut into little-endian 8-byte words w_1..w_m (the last one padded
   with zeros) and n their number,

       h_0 = n * 0x9E3779B97F4A7C15,   h_i = mix64(h_{i-1} ^ w_i),   key = h_m

   (all modulo 2^64; the empty string has key 0). mix64 is the finaliser of SplitMix64, a bijection,
   so two different strings of the same length up to 8 bytes never collide; for others the chance
   that any two of K values collide is about K^2 / 2^65 (3e-6 for ten million).

2. A key becomes a row in [0, num_rows) by `hash_rows`: MurmurHash3's 32-bit finaliser over the low
   and the high half, then Lemire's range reduction, which needs no division:

       h = fmix32(low32(x) ^ seed);  h = fmix32(h ^ high32(x));  row = (h * num_rows) >> 32

   The same in numpy, torch and on the GPU. Seeds come from `hash_seed`, salted with the feature's
   name, never its position, so that reordering features changes nothing.

Source: MurmurHash3 and its finalisers (A. Appleby, public domain); SplitMix64 (G. Steele, D. Lea,
C. Flood, OOPSLA 2014; S. Vigna's constants); D. Lemire, "Fast Random Integer Generation in an
Interval", TOMACS 2019.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from recemb.kernels.hashing import MAX_ROWS, reference

_MASK32 = 0xFFFFFFFF
_FMIX32_FIRST, _FMIX32_SECOND = 0x85EBCA6B, 0xC2B2AE35
_GOLDEN64 = 0x9E3779B97F4A7C15
_WORD_BYTES = 8


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's finaliser of each of `values`, a bijection of 64-bit integers."""
    z = values ^ (values >> np.uint64(30))
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def hash_seed(seed: int, name: str, probe: int = 0) -> int:
    """Return the 32-bit hash seed of a feature's lookup `probe`.

    Args:
        seed: the global seed.
        name: the feature's name.
        probe: which of several lookups of the feature.
    """
    h = _fmix32(seed & _MASK32)
    key = int(hash_strings(pa.array([name]))[0])
    for word in (key, key >> 32, probe):
        h = _fmix32(h ^ (word & _MASK32))
    return h


def hash_rows(keys: NDArray[np.int64], seed: int, num_rows: int) -> NDArray[np.int64]:
    """Return the row of each key, (N,) int64 in [0, num_rows).

    Args:
        keys: (N,) int64, any values.
        seed: 32-bit, from `hash_seed`.
        num_rows: at least 1 and at most `MAX_ROWS`.

    Raises:
        ValueError: if `num_rows` is out of range.
    """
    _check_num_rows(num_rows)
    low = (keys & _MASK32).astype(np.uint32)
    high = ((keys >> 32) & _MASK32).astype(np.uint32)
    h = _fmix32_array(_fmix32_array(low ^ np.uint32(seed)) ^ high)
    return ((h.astype(np.uint64) * np.uint64(num_rows)) >> np.uint64(32)).astype(np.int64)


def hash_rows_torch(keys: Tensor, seed: int, num_rows: int) -> Tensor:
    """Return what `hash_rows` returns, for a tensor of keys on any device.

    Args:
        keys: (N,) int64, any values.
        seed: 32-bit, from `hash_seed`.
        num_rows: at least 1 and at most `MAX_ROWS`.

    Raises:
        ValueError: if `num_rows` is out of range.
    """
    _check_num_rows(num_rows)
    return reference.hash_rows(keys, seed, num_rows)


def hash_strings(values: pa.Array) -> NDArray[np.int64]:
    """Return the key of each string of an arrow array, (N,) int64; nulls count as empty.

    Args:
        values: string, large string or binary; a chunked array is not accepted.
    """
    offsets, data = _string_buffers(values)
    starts, lengths = offsets[:-1], np.diff(offsets)
    h = lengths.astype(np.uint64) * np.uint64(_GOLDEN64)
    if data.size == 0:
        return h.view(np.int64)
    # Words are read from anywhere, so the data need a word's room behind their end.
    padded = np.concatenate([data, np.zeros(_WORD_BYTES, np.uint8)])
    words = np.ndarray((data.size + 1,), "<u8", padded, strides=(1,))
    where: NDArray[np.int64] | slice = slice(None)
    done = 0
    while True:
        left = lengths[where] - done
        if isinstance(where, slice) and (left.size == 0 or left.min() > 0):
            active: NDArray[np.int64] | slice = where
        else:
            active = np.flatnonzero(lengths > done)
            if active.size == 0:
                return h.view(np.int64)
            left = lengths[active] - done
        word = words[starts[active] + done].astype(np.uint64)
        num_padding_bits = (8 * (_WORD_BYTES - np.minimum(left, _WORD_BYTES))).astype(np.uint64)
        word &= np.uint64(2**64 - 1) >> num_padding_bits
        h[active] = mix64(h[active] ^ word)
        where, done = active, done + _WORD_BYTES
        if left.size == 0 or left.max() <= _WORD_BYTES:
            return h.view(np.int64)


def _string_buffers(values: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the offsets (N + 1,), from 0, and the bytes of an arrow string array."""
    if values.null_count:
        values = values.fill_null("" if pa.types.is_string(values.type) else b"")
    is_large = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    _, offset_buffer, data_buffer = values.buffers()
    if len(values) == 0 or data_buffer is None:
        return np.zeros(len(values) + 1, np.int64), np.empty(0, np.uint8)
    dtype: Any = np.int64 if is_large else np.int32
    offsets = np.frombuffer(offset_buffer, dtype)[values.offset : values.offset + len(values) + 1]
    data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
    return (offsets - offsets[0]).astype(np.int64), data


def _check_num_rows(num_rows: int) -> None:
    if not 1 <= num_rows <= MAX_ROWS:
        raise ValueError(f"hashing: num_rows must be in [1, {MAX_ROWS}], got {num_rows}")


def _fmix32(h: int) -> int:
    h = ((h ^ (h >> 16)) * _FMIX32_FIRST) & _MASK32
    h = ((h ^ (h >> 13)) * _FMIX32_SECOND) & _MASK32
    return h ^ (h >> 16)


def _fmix32_array(h: NDArray[np.uint32]) -> NDArray[np.uint32]:
    h = (h ^ (h >> np.uint32(16))) * np.uint32(_FMIX32_FIRST)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(_FMIX32_SECOND)
    return h ^ (h >> np.uint32(16))
