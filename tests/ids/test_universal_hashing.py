"""Universal hashing: exact by Python's integers, constants in range, floats equal integers."""

import pytest
import torch

from recemb.ids.universal_hashing import fits_floats, hash_constants, universal_hash

LARGE = [0, 1, 999_999, 1_000_003, 2**31 + 7, 2**40 - 1, 2**42]


def test_hashes_are_those_of_unbounded_integers():
    # The products reach 2^62.
    constants = hash_constants(5, 64, 1_000_000)
    a, b, p = constants.tolist()
    expected = [[(a[j] * x + b[j]) % p[j] % 1_000_000 for j in range(64)] for x in LARGE]
    assert universal_hash(torch.tensor(LARGE), constants, 1_000_000).tolist() == expected


@pytest.mark.parametrize(
    ("num_buckets", "num_hashes", "num_ids"),
    [(1_000_000, 1024, 2**29), (1000, 64, 2**39), (2, 3, 2**47)],
)
def test_floats_give_what_integers_give(num_buckets, num_hashes, num_ids):
    constants = hash_constants(9, num_hashes, num_buckets)
    assert fits_floats(num_ids, num_buckets)
    ids = torch.cat([torch.arange(3000), num_ids - torch.arange(1, 3000)])
    found = universal_hash(ids, constants, num_buckets, in_floats=True)
    assert torch.equal(found.long(), universal_hash(ids, constants, num_buckets))


def test_floats_are_exact_next_to_multiples_of_the_modulus():
    # Where a quotient is nearest to a whole number, up to the limit.
    prime = 65_000_011
    multiples = prime * torch.tensor([1, 2, 3, 1000, 10**6, 2**49 // prime - 1])
    ids = (multiples.unsqueeze(1) + torch.tensor([-1, 0, 1])).flatten()
    constants = torch.tensor([[1], [0], [prime]])
    found = universal_hash(ids, constants, 1_000_000, in_floats=True)
    assert torch.equal(found.long(), universal_hash(ids, constants, 1_000_000))


@pytest.mark.parametrize(("num_ids", "num_buckets"), [(2**49, 2), (2**30, 1_000_000)])
def test_where_floats_are_not_exact_it_says_so(num_buckets, num_ids):
    assert not fits_floats(num_ids, num_buckets)


def test_the_moduli_are_the_primes_from_64_times_the_number_of_buckets_on():
    assert hash_constants(7, 5, 2)[2].tolist() == [131, 137, 139, 149, 151]
    primes = hash_constants(7, 1024, 1_000_000)[2].tolist()
    assert all(64_000_000 < q < 66_000_000 for q in primes)
    assert len(set(primes)) == 1024
    assert all(all(q % d for d in range(2, 8125)) for q in primes[:20])


def test_factors_and_terms_are_in_range():
    factors = hash_constants(7, 1024, 1_000_000)[:2]
    assert int(factors.min()) >= 1
    assert int(factors.max()) < 1_000_000


def test_hashes_of_consecutive_ids_fill_the_buckets_evenly():
    found = universal_hash(torch.arange(20_000), hash_constants(3, 32, 100), 100)
    counts = torch.stack([torch.bincount(column, minlength=100) for column in found.T])
    # 200 to a bucket; random draws would have a deviation of 14.
    assert int((counts - 200).abs().max()) < 5 * 14
