"""The pooled lookup's Triton kernels against the float64 reference."""

import mmap

import pytest
import torch
from torch import Tensor

from recemb.kernels.bag import launch, pack_slots, reference
from recemb.kernels.bag_weight_gradient.kernel import bag_weight_gradient

WAYS = [("trust", False), ("ignore", True), ("clamp", True)]
# bfloat16 has 8 bits; the interpreter truncates to it where the hardware rounds.
BFLOAT16 = {"atol": 0.0, "rtol": 2.0**-7}
# Rows of order one and at most ten per bag: a rounding of float32 each.
FLOAT32 = {"atol": 1e-5, "rtol": 1e-5}
BATCH = 5
TABLE_ROWS = 25


def mixed_slots(device: str) -> Tensor:
    """Five slots on features 0 and 2 of 3: hashed and not, sum and mean, shared rows."""
    return pack_slots(
        [2, 0, 0, 2, 0],
        [0, 7, 7, 20, 0],
        [7, 13, 13, 5, 7],
        [0, 1, 2**32 - 1, 0, 9],
        [False, True, True, False, False],
        [True, False, True, False, True],
        device,
    )


def some_batch(policy: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Values, offsets and weights; the last bag is the longest, some are empty."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 5, (3, BATCH), generator=generator)
    lengths[0, 1] = lengths[2, 0] = 0
    lengths[2, 4] = 9
    offsets = torch.nn.functional.pad(lengths.flatten().cumsum(0), (1, 0))
    # "trust" promises ids that are in range in every slot that does not hash.
    low, high = (0, 5) if policy == "trust" else (-3, 9)
    values = torch.randint(low, high, (int(offsets[-1]),), generator=generator)
    return values, offsets, torch.rand(values.shape, generator=generator)


def truth(weight: Tensor, values: Tensor, offsets: Tensor | None, weights: Tensor | None,
          policy: str) -> Tensor:  # fmt: skip
    return reference.bag_forward(
        weight.cpu().double(), values, offsets, weights, mixed_slots("cpu"), batch_size=BATCH,
        policy=policy, out_dtype=torch.float64,
    )  # fmt: skip


@pytest.mark.parametrize(("policy", "is_weighted"), WAYS)
def test_jagged_lookup_is_the_reference(device: str, policy: str, is_weighted: bool) -> None:
    values, offsets, weights = some_batch(policy)
    weight = torch.randn(TABLE_ROWS, 6)
    factors = weights if is_weighted else None
    found = launch.bag_forward(
        weight.to(device),
        values.to(device),
        offsets.to(device),
        weights.to(device) if is_weighted else None,
        mixed_slots(device),
        batch_size=BATCH,
        policy=policy,
    )
    expected = truth(weight, values, offsets, factors, policy)
    torch.testing.assert_close(found.cpu().double(), expected, **FLOAT32)


@pytest.mark.parametrize("width", [1, 3, 63])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_odd_widths_and_narrow_types_are_the_reference(
    device: str, width: int, dtype: torch.dtype
) -> None:
    values = some_batch("ignore")[0][: 3 * BATCH]
    weight = torch.randn(TABLE_ROWS, width).to(dtype)
    found = launch.bag_forward(
        weight.to(device),
        values.int().to(device),
        None,
        None,
        mixed_slots(device),
        batch_size=BATCH,
        policy="ignore",
    )
    expected = truth(weight, values, None, None, "ignore")
    torch.testing.assert_close(found.cpu().double(), expected, **FLOAT32)


def test_int32_ids_and_offsets_are_the_same(device: str) -> None:
    values, offsets, _ = (t.to(device) for t in some_batch("clamp"))
    weight, slots = torch.randn(TABLE_ROWS, 4, device=device), mixed_slots(device)
    wide, narrow = (
        launch.bag_forward(weight, v, o, None, slots, batch_size=BATCH, policy="clamp")
        for v, o in ((values, offsets), (values.int(), offsets.int()))
    )
    assert torch.equal(wide, narrow)


def test_result_does_not_depend_on_the_blocks(device: str) -> None:
    values, offsets, weights = (t.to(device) for t in some_batch("ignore"))
    weight, slots = torch.randn(TABLE_ROWS, 4, device=device), mixed_slots(device)
    found = [
        launch.bag_forward(
            weight,
            values,
            offsets,
            weights,
            slots,
            batch_size=BATCH,
            policy="ignore",
            blocks=blocks,
        )
        for blocks in (
            launch.Blocks(bags=8, unroll=1),
            launch.Blocks(bags=4, unroll=4),
        )
    ]
    assert torch.equal(found[0], found[1])


def test_narrow_results_are_rounded_float32(device: str) -> None:
    values, weight = torch.tensor([0, 1, 2], device=device), torch.randn(3, 8, device=device)
    slots = pack_slots([0], [0], [3], [0], [False], [False], device)
    full, half, brain = (
        launch.bag_forward(weight, values, None, None, slots, batch_size=3, out_dtype=dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    )
    assert torch.equal(full.half(), half)
    torch.testing.assert_close(brain.float(), full, **BFLOAT16)


def test_float64_accumulator_keeps_small_terms(device: str) -> None:
    weight = torch.tensor([[1e8], [1.0], [-1e8]], device=device)
    slots = pack_slots([0], [0], [3], [0], [False], [False], device)
    values, offsets = torch.tensor([0, 1, 2], device=device), torch.tensor([0, 3], device=device)
    found = launch.bag_forward(
        weight, values, offsets, None, slots, batch_size=1, accumulate_float64=True
    )
    assert found.tolist() == [[1.0]]


def test_empty_bags_and_ignored_ids_are_exactly_zero(device: str) -> None:
    weight = torch.full((4, 3), float("nan"), device=device)
    slots = pack_slots([0, 0], [0, 0], [4, 4], [0, 0], [False, False], [True, False], device)
    values = torch.tensor([-1, 4], device=device)
    offsets = torch.tensor([0, 0, 2, 2], device=device)
    found = launch.bag_forward(weight, values, offsets, None, slots, batch_size=3, policy="ignore")
    assert torch.equal(found.cpu(), torch.zeros(3, 6))


def test_batch_without_any_id_is_zero(device: str) -> None:
    weight = torch.randn(4, 3, device=device)
    slots = pack_slots([0], [0], [4], [7], [True], [True], device)
    values = torch.zeros(0, dtype=torch.int64, device=device)
    offsets = torch.zeros(4, dtype=torch.int64, device=device)
    found = launch.bag_forward(weight, values, offsets, None, slots, batch_size=3)
    assert torch.equal(found.cpu(), torch.zeros(3, 3))
    rows, _, _ = launch.bag_rows(
        values, offsets, None, slots, batch_size=3, policy="trust", sentinel=4, num_lookups=2
    )
    assert rows.tolist() == [4, 4]


@pytest.mark.parametrize(("batch_size", "num_slots"), [(0, 0), (0, 1), (2, 0)])
def test_nothing_asked_for_is_nothing_found(device: str, batch_size: int, num_slots: int) -> None:
    weight = torch.randn(4, 3, device=device)
    columns = [[0], [0], [4], [7], [True], [True]]
    slots = pack_slots(*(column[:num_slots] for column in columns), device)
    values = torch.zeros(batch_size, dtype=torch.int64, device=device)
    for backend in (launch, reference):
        found = backend.bag_forward(weight, values, None, None, slots, batch_size=batch_size)
        assert found.shape == (batch_size, num_slots * 3)
        rows, sources, scales = backend.bag_rows(
            values,
            None,
            None,
            slots,
            batch_size=batch_size,
            policy="trust",
            sentinel=4,
            num_lookups=2,
        )
        assert rows.tolist() == [4, 4]
        assert sources.tolist() == [0, 0]
        assert scales is not None
        assert scales.tolist() == [0, 0]
    grad = torch.ones(found.shape, device=device)
    gradient = bag_weight_gradient(weight, values, None, slots, grad, batch_size=batch_size)
    assert gradient.tolist() == [0.0] * batch_size


def test_table_of_one_row_is_read_by_every_hash(device: str) -> None:
    weight = torch.tensor([[1.0, 2.0]], device=device)
    slots = pack_slots([0], [0], [1], [5], [True], [False], device)
    values = torch.tensor([0, -1, 2**62, -(2**63)], device=device)
    offsets = torch.tensor([0, 1, 4], device=device)
    found = launch.bag_forward(weight, values, offsets, None, slots, batch_size=2)
    assert found.tolist() == [[1.0, 2.0], [3.0, 6.0]]


@pytest.mark.parametrize(("policy", "is_weighted"), WAYS)
def test_list_of_lookups_is_the_reference(device: str, policy: str, is_weighted: bool) -> None:
    values, offsets, weights = some_batch(policy)
    sizes = offsets.diff().view(3, BATCH).sum(1)
    # Room for more than there is, so that the sentinel fills what is left.
    arguments = {
        "batch_size": BATCH,
        "policy": policy,
        "sentinel": TABLE_ROWS,
        "num_lookups": int(sizes[2] * 2 + sizes[0] * 3) + 30 * is_weighted,
    }
    factors = weights if is_weighted else None
    expected = reference.bag_rows(values, offsets, factors, mixed_slots("cpu"), **arguments)
    found = launch.bag_rows(
        values.to(device),
        offsets.to(device),
        None if factors is None else factors.to(device),
        mixed_slots(device),
        block_bags=4,
        block_ids=4,
        **arguments,
    )
    for kernel, ours in zip(found, expected, strict=True):
        assert kernel is not None
        assert ours is not None
        torch.testing.assert_close(kernel.cpu(), ours)


def test_list_of_single_ids_is_the_reference(device: str) -> None:
    values = some_batch("ignore")[0][: 3 * BATCH]
    arguments = {
        "batch_size": BATCH,
        "policy": "ignore",
        "sentinel": 2**31 - 1,
        "num_lookups": 5 * BATCH,
        "scale_dtype": None,
    }
    expected = reference.bag_rows(values, None, None, mixed_slots("cpu"), **arguments)
    found = launch.bag_rows(values.to(device), None, None, mixed_slots(device), **arguments)
    assert torch.equal(found[0].cpu(), expected[0])
    assert torch.equal(found[1].cpu(), expected[1])
    assert found[2] is expected[2] is None


def sparse_zeros(num_values: int, device: str) -> Tensor:
    """Zeros in float16 of which a CPU only holds the pages that are touched."""
    if device == "cuda":
        return torch.zeros(num_values, dtype=torch.float16, device=device)
    memory = mmap.mmap(-1, 2 * num_values, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    return torch.frombuffer(memory, dtype=torch.float16)


NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python does not name.


@pytest.mark.parametrize("is_hashed", [False, True])
def test_rows_past_two_to_the_31_values_are_addressed_right(device: str, is_hashed: bool) -> None:
    width, num_rows = 64, 2**31 // 64 + 2
    weight = sparse_zeros(num_rows * width, device).view(num_rows, width)
    weight[num_rows - 2 :] = torch.tensor([[1.0], [2.0]], device=device)
    # The last two rows: by a large id, or as the only rows of a hashed table.
    slots = (
        pack_slots([0, 0], [num_rows - 2, num_rows - 1], [1, 1], [3, 4], [True] * 2, [False] * 2)
        if is_hashed
        else pack_slots([0, 0], [0, 1], [num_rows, num_rows - 1], [0, 0], [False] * 2, [False] * 2)
    )
    values = torch.tensor([num_rows - 2], device=device)
    found = launch.bag_forward(weight, values, None, None, slots.to(device), batch_size=1)
    assert torch.equal(found.cpu().view(2, width), torch.tensor([[1.0], [2.0]]).expand(2, width))
    grad = torch.ones(1, 2 * width, device=device)
    gradient = bag_weight_gradient(weight, values, None, slots.to(device), grad, batch_size=1)
    assert gradient.tolist() == [3.0 * width]


def test_blocks_hold_at_most_32_values_per_thread_and_step() -> None:
    for width in (1, 3, 16, 64, 128, 256, 1000):
        for itemsize in (2, 4):
            for mean_length, is_jagged in ((1.0, False), (20.0, True), (1000.0, True)):
                blocks = launch.choose_blocks(width, itemsize, mean_length, is_jagged=is_jagged)
                block_d = 1 << (width - 1).bit_length()
                assert blocks.bags * block_d / (32 * blocks.num_warps) <= 32
