"""The hash: the same bits everywhere, golden values, even spread."""

import numpy as np
import pytest
import torch

from recemb.kernels import compiled
from recemb.kernels.hashing import kernel, reference, slots

EDGES = [
    0,
    1,
    -1,
    2,
    41,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32 - 1,
    2**32,
    -(2**32),
    2**63 - 1,
    -(2**63),
]
SEEDS = [0, 1, 0x9E3779B9, 0xFFFFFFFF]
NUM_ROWS = [1, 2, 3, 1000, 2**20, 2**31 - 1]


def fmix32_by_definition(h: int) -> int:
    """MurmurHash3's finaliser in Python's exact integers."""
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ (h >> 16)


def row_by_definition(x: int, seed: int, num_rows: int) -> int:
    """The module's formula in Python's exact integers."""
    x %= 2**64
    h = fmix32_by_definition(x % 2**32 ^ seed)
    h = fmix32_by_definition(h ^ (x >> 32))
    return h * num_rows >> 32


def some_keys() -> torch.Tensor:
    random = np.random.default_rng(5).integers(-(2**63), 2**63 - 1, 200, dtype=np.int64)
    return torch.cat([torch.tensor(EDGES), torch.from_numpy(random)])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_reference_is_the_definition(seed: int, num_rows: int) -> None:
    keys = some_keys()
    expected = [row_by_definition(int(k), seed, num_rows) for k in keys]
    assert reference.hash_rows(keys, seed, num_rows).tolist() == expected


def test_finaliser_has_its_published_values() -> None:
    # fmix32 of 0 and 1 are given in the tests of several MurmurHash3 implementations.
    assert reference.fmix32(torch.tensor([0, 1])).tolist() == [0, 0x514E28B7]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_rows", [1, 3, 2**31 - 1])
def test_kernel_is_bit_equal_to_the_reference(seed: int, num_rows: int, device: str) -> None:
    keys = some_keys().to(device)
    found = kernel.hash_rows(keys, torch.tensor([seed], device=device), num_rows)
    assert torch.equal(found, reference.hash_rows(keys, seed, num_rows))


def test_kernel_takes_int32_keys(device: str) -> None:
    keys = torch.tensor([0, 1, -1, 2**31 - 1, -(2**31)], dtype=torch.int32, device=device)
    found = kernel.hash_rows(keys, torch.tensor([7], device=device), 1000)
    assert torch.equal(found, reference.hash_rows(keys.long(), 7, 1000))


def test_kernel_hashes_nothing(device: str) -> None:
    keys = torch.empty(0, dtype=torch.int64, device=device)
    assert kernel.hash_rows(keys, torch.tensor([7], device=device), 10).shape == (0,)


def test_seeds_and_sizes_broadcast() -> None:
    keys, seeds = some_keys(), torch.tensor(SEEDS).unsqueeze(1)
    rows = reference.hash_rows(keys, seeds, torch.tensor([5, 7, 11, 13]).unsqueeze(1))
    assert torch.equal(rows[2], reference.hash_rows(keys, SEEDS[2], 11))


def test_consecutive_ids_spread_evenly() -> None:
    num_rows, num_ids = 64, 64_000
    rows = reference.hash_rows(torch.arange(num_ids), 12345, num_rows)
    counts = torch.bincount(rows, minlength=num_rows).double()
    chi_squared = float(((counts - 1000) ** 2 / 1000).sum())
    # 63 degrees of freedom: mean 63, standard deviation 11.2; six of them above the mean.
    assert chi_squared < 63 + 6 * 11.2


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_hashed_slots_are_first_rows_plus_the_hash(dtype: torch.dtype) -> None:
    keys = some_keys().expand(3, -1)
    seeds, sizes = torch.tensor([[0], [7], [2**32 - 1]]), torch.tensor([[1], [10], [1000]])
    firsts = torch.tensor([[5], [0], [100]], dtype=dtype)
    found = slots.hash_slots(keys, seeds, sizes, firsts)
    assert found.dtype == dtype
    assert torch.equal(found, reference.hash_rows(keys, seeds, sizes) + firsts)


@pytest.mark.slow
def test_compiled_hash_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "COMPILE_FROM", 1)
    keys = some_keys().repeat(2, 9)
    arguments = (torch.tensor([[3], [4]]), torch.tensor([[77], [2**31 - 1]]))
    firsts = torch.tensor([[5], [6]])
    found = slots.hash_slots(keys, *arguments, firsts)
    assert torch.equal(found, reference.hash_rows(keys, *arguments) + firsts)


def test_hash_works_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    monkeypatch.setattr(slots, "COMPILE_FROM", 1)
    compiled.compile_for_cpu.cache_clear()
    keys, seed, size = some_keys().unsqueeze(0), torch.tensor([[3]]), torch.tensor([[77]])
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        found = slots.hash_slots(keys, seed, size, torch.tensor([[0]]))
    compiled.compile_for_cpu.cache_clear()
    assert torch.equal(found, reference.hash_rows(keys, seed, size))
