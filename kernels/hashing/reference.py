"""The hash in plain torch, on int64 lanes that hold 32 bits; written to be read.

    h = fmix32(low32(x) ^ seed);  h = fmix32(h ^ high32(x));  row = (h * num_rows) >> 32

fmix32 is MurmurHash3's 32-bit finaliser, a bijection of 32-bit integers. The last step is Lemire's
range reduction, which needs no division; it wants num_rows < 2^31, so that the product fits int64.

Source: MurmurHash3 (A. Appleby, public domain); D. Lemire, "Fast Random Integer Generation in an
Interval", TOMACS 2019.
"""

from torch import Tensor

MAX_ROWS = 2**31 - 1
"""Most rows that a table may have."""

_MASK32 = 0xFFFFFFFF


def fmix32(h: Tensor) -> Tensor:
    """Return MurmurHash3's finaliser of `h`, int64 values in [0, 2^32).

    The product of two 32-bit numbers wraps in int64, but its low half is right.
    """
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _MASK32
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _MASK32
    return h ^ (h >> 16)


def hash_rows(keys: Tensor, seeds: Tensor | int, num_rows: Tensor | int) -> Tensor:
    """Return the row of each key, int64 in [0, num_rows); the arguments broadcast.

    Args:
        keys: (N,) int64 or int32, any values, negative ones included.
        seeds: 32-bit, as non-negative int64.
        num_rows: from 1 to MAX_ROWS; not checked here.
    """
    keys = keys.long()
    h = fmix32((keys & _MASK32) ^ seeds)
    h = fmix32(h ^ ((keys >> 32) & _MASK32))
    return (h * num_rows) >> 32
