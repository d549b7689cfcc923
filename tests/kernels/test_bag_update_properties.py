"""Sums of integers are exact, so for any lookups the kernels must give the very numbers."""

import dataclasses

import pytest
import torch

from recemb.kernels.bag_update import launch, reference
from recemb.kernels.bag_update.launch import CHUNK, Lookups

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LENGTHS = st.one_of(
    st.integers(0, 6), st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK])
)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lengths=st.lists(LENGTHS, max_size=6),
    num_sentinels=st.integers(0, 70),
    width=st.integers(1, 9),
    is_long=st.booleans(),
    has_sources=st.booleans(),
    has_scales=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sums_are_exact(
    lengths: list[int],
    num_sentinels: int,
    width: int,
    is_long: bool,
    has_sources: bool,
    has_scales: bool,
    seed: int,
    device: str,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_rows = len(lengths) + 1
    counts = torch.tensor([*lengths, 0, num_sentinels])
    rows = torch.repeat_interleave(torch.arange(num_rows + 1), counts)
    rows = rows[torch.randperm(rows.numel(), generator=generator)]
    rows = rows if is_long else rows.int()
    num_bags = 5 if has_sources else rows.numel()
    lookups = Lookups(
        torch.randint(-99, 100, (num_bags, width), generator=generator).float(),
        *reference.plan_update(rows, num_rows),
        torch.randint(0, 5, rows.shape, generator=generator) if has_sources else None,
        torch.randint(-3, 4, rows.shape, generator=generator).float() if has_scales else None,
    )
    runs = reference.find_runs(
        lookups.sorted_rows, lookups.permutation, lookups.sources, lookups.scales, num_rows
    )
    expected = reference.dense_gradient(lookups.grad.double(), runs, num_rows)
    there = Lookups(*(None if p is None else p.to(device) for p in dataclasses.astuple(lookups)))
    tiles = dataclasses.replace(launch.choose_tiles(width), positions=512)
    found = launch.dense_gradient(there, num_rows, tiles=tiles)
    assert torch.equal(found.cpu().double(), expected)
    distinct, sums, count = launch.segment_sum(there, num_rows, tiles=tiles)
    kept = [i for i, length in enumerate(lengths) if length]
    assert distinct.tolist() == kept + [num_rows] * (rows.numel() - len(kept))
    assert torch.equal(sums[: len(kept)].cpu().double(), expected[kept])
    assert not sums[len(kept) :].any()
    assert int(count) == len(kept)
