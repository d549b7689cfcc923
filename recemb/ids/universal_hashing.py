"""Many universal hashes of an id at once, exactly.

    h_j(x) = ((a_j x + b_j) mod p_j) mod m,   j = 1..k

Source: Carter and Wegman, "Universal Classes of Hash Functions", JCSS 1979; used by deep hash
embeddings (Kang et al., KDD 2021).

Shapes: `N` ids, `k` hash functions.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recemb.ids.hashing import mix64

_EXACT = 2**49
_PRIMES_OVER_BUCKETS = 64
_GOLDEN64 = 0x9E3779B97F4A7C15


def hash_constants(seed: int, num_hashes: int, num_buckets: int) -> Tensor:
    """Return a, b and p of each hash function, (3, k) int64, on the CPU.

    a and b are SplitMix64's finaliser of seed and position, reduced to [1, m); p are the first k
    primes from 64 m on, ascending: with smaller ones, the first p mod m buckets would be hit
    visibly more often than the others.

    Args:
        seed: 32-bit.
        num_hashes: k, at least 1.
        num_buckets: m, at least 2.
    """
    counters = (np.uint64(seed) << np.uint64(32)) + np.arange(2 * num_hashes, dtype=np.uint64)
    mixed = mix64(counters * np.uint64(_GOLDEN64)).reshape(2, num_hashes)
    reduced = (mixed % np.uint64(num_buckets - 1)).astype(np.int64) + 1
    primes = _primes_from(_PRIMES_OVER_BUCKETS * num_buckets, num_hashes)
    return torch.from_numpy(np.vstack([reduced, primes]))


def universal_hash(
    ids: Tensor, constants: Tensor, num_buckets: int, *, in_floats: bool = False
) -> Tensor:
    """Return the hashes (N, k) of `ids` (N,), whole numbers in [0, m), exactly.

    Args:
        ids: not negative.
        constants: (3, k) int64, of `hash_constants`, on the ids' device.
        num_buckets: m.
        in_floats: calculate in float64 instead of int64, several times as fast on a CPU; where
            `fits_floats` says so.

    Returns:
        int64, or float64 if `in_floats`.
    """
    a, b, p = constants.unbind(0)
    if not in_floats:
        return (a * ids.long().unsqueeze(1) + b) % p % num_buckets
    p = p.double()
    t = torch.addcmul(b.double(), ids.double().unsqueeze(1), a.double())
    quotient = t.add(0.5).mul_(p.reciprocal()).floor_()
    t.addcmul_(quotient, p, value=-1)
    torch.add(t, 0.5, out=quotient).mul_(1 / num_buckets).floor_()
    return t.sub_(quotient, alpha=num_buckets)


def fits_floats(num_ids: int, num_buckets: int) -> bool:
    """Return whether float64 is exact for ids in [0, num_ids).

    For whole t < 2^49 the error of (t + 1/2) / p, three roundings of at most 2^-53 of it, is below
    the 1 / (2 p) that part it from the nearest whole number, and all products are exact.
    """
    return (num_ids + 1) * num_buckets < _EXACT


def _primes_from(least: int, count: int) -> NDArray[np.int64]:
    """Return the first `count` primes from `least` on, by a sieve of a segment."""
    # Primes near x are log x apart on average; twice that is enough for all but short lists.
    length = int(2 * (count + 20) * math.log(least + count * 30))
    is_prime = np.ones(length, dtype=bool)
    for divisor in range(2, math.isqrt(least + length) + 1):
        first = max(divisor * divisor, -(-least // divisor) * divisor)
        is_prime[first - least :: divisor] = False
    found = np.flatnonzero(is_prime)[:count].astype(np.int64) + least
    assert len(found) == count
    return found
