"""Stochastic rounding: unbiased, to a neighbour, the same bits in torch and Triton."""

import math

import pytest
import torch
from torch import Tensor

from recemb.kernels.bag_update import launch
from recemb.kernels.bag_update.reference import random_bits, round_stochastically

NARROW = [torch.float16, torch.bfloat16]
SEEDS = [0, 1, 2**31, 2**32 - 1]


def values_of_all_sizes() -> Tensor:
    """Numbers from 1e-9 to 1e5 of both signs, multiples of float16's unit, and edges."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-9, 5, (500,), generator=generator)
    scattered = torch.randn(500, generator=generator) * 10.0**exponents
    edges = [0.0, -0.0, 6e-8, 2.0**-24, 2.0**-14, 1e-40, 65504.0, 65519.0, 3.4e38]
    return torch.cat([scattered, torch.tensor(edges), -torch.tensor(edges)])


def elements_like(values: Tensor) -> Tensor:
    """Elements of a table beyond 2^32 values too."""
    return torch.arange(values.numel(), device=values.device) * (2**25 + 1)


def neighbours(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the largest number of `dtype` not above each value and the smallest not below."""
    nearest = values.to(dtype)
    infinity = torch.tensor(math.inf, dtype=dtype)
    below = torch.where(nearest.float() > values, nearest.nextafter(-infinity), nearest)
    above = torch.where(nearest.float() < values, nearest.nextafter(infinity), nearest)
    return below, above


def fmix32_by_definition(h: int) -> int:
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ (h >> 16)


@pytest.mark.parametrize("seed", SEEDS)
def test_bits_are_the_definition(seed: int) -> None:
    elements = [0, 1, 2**31, 2**32 - 1, 2**32, 123456789012345]
    expected = [
        fmix32_by_definition(fmix32_by_definition(e % 2**32 ^ seed) ^ (e >> 32)) for e in elements
    ]
    assert random_bits(seed, torch.tensor(elements)).tolist() == expected


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("seed", SEEDS)
def test_kernel_is_bit_equal_to_the_reference(seed: int, dtype: torch.dtype, device: str) -> None:
    values = torch.cat([values_of_all_sizes(), torch.tensor([math.inf, -math.inf])]).to(device)
    found = launch.round_stochastically(values, elements_like(values), seed, dtype)
    expected = round_stochastically(values, elements_like(values), seed, dtype)
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("dtype", NARROW)
def test_every_value_goes_to_a_neighbour(dtype: torch.dtype) -> None:
    values = values_of_all_sizes()
    below, above = neighbours(values, dtype)
    for seed in range(20):
        found = round_stochastically(values, elements_like(values), seed, dtype)
        assert bool(((found == below) | (found == above)).all())


@pytest.mark.parametrize("dtype", NARROW)
def test_both_neighbours_occur(dtype: torch.dtype) -> None:
    values = torch.full((1000,), 1 + 2.0**-12)
    found = round_stochastically(values, torch.arange(1000), 5, dtype)
    assert found.unique().numel() == 2


@pytest.mark.parametrize("dtype", NARROW)
def test_numbers_of_the_narrow_type_stay(dtype: torch.dtype) -> None:
    values = values_of_all_sizes().to(dtype)
    values = values[values.isfinite()]
    for seed in range(20):
        found = round_stochastically(values.float(), elements_like(values), seed, dtype)
        assert bool((found == values).all())


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("dtype", NARROW)
def test_infinity_and_nan_pass(dtype: torch.dtype, device: str) -> None:
    values = torch.tensor([math.inf, -math.inf, math.nan, -math.nan], device=device)
    for function in (launch.round_stochastically, round_stochastically):
        found = function(values, elements_like(values), 3, dtype)
        assert found[:2].tolist() == [math.inf, -math.inf]
        assert bool(found[2:].isnan().all())


@pytest.mark.parametrize("dtype", NARROW)
def test_mean_over_seeds_is_the_value(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0003, -0.7123, 3.3e-5, -4.21e-6, 1e-8, 77.77, 5.5e-5, -6.2e-5])
    elements = torch.tensor([7, 64, 2**31, 2**32, 2**40 + 5, 1, 2, 3])
    num_seeds = 2000
    total = torch.zeros(values.shape, dtype=torch.float64)
    for seed in range(num_seeds):
        total += round_stochastically(values, elements, seed, dtype).double()
    below, above = (bound.double() for bound in neighbours(values, dtype))
    p = (values - below) / (above - below)
    standard_error = (above - below) * (p * (1 - p) / num_seeds).sqrt()
    assert bool(((total / num_seeds - values).abs() <= 5 * standard_error).all())


@pytest.mark.parametrize("dtype", NARROW)
def test_mean_over_elements_is_the_value(dtype: torch.dtype) -> None:
    values, num_elements = torch.tensor([0.3, -1.7e-5]), 20_000
    elements = torch.arange(num_elements).unsqueeze(1) * 2
    below, above = (bound.double() for bound in neighbours(values, dtype))
    p = (values - below) / (above - below)
    standard_error = (above - below) * (p * (1 - p) / num_elements).sqrt()
    for seed in SEEDS:
        rounded = round_stochastically(values.expand(num_elements, 2), elements, seed, dtype)
        error = rounded.double().mean(0) - values
        assert bool((error.abs() <= 5 * standard_error).all())


def test_wider_types_are_only_converted() -> None:
    values = values_of_all_sizes()
    found = round_stochastically(values, elements_like(values), 1, torch.float32)
    assert torch.equal(found, values)
