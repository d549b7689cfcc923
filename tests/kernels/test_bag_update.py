"""The kernels, under the interpreter or on a GPU, against the reference in float64."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from recemb.kernels.bag_update import launch, reference
from recemb.kernels.bag_update.launch import CHUNK, Lookups

# Float32 sums of up to a few hundred terms near 1, then a formula of a few operations, four steps.
FLOAT32 = {"rtol": 2e-5, "atol": 5e-6}
# One unit in the last place of float16 and bfloat16, for each of the steps.
NARROW = {torch.float16: 3 * 2.0**-10, torch.bfloat16: 3 * 2.0**-7}
NUM_STEPS = 3
WIDTH = 10
ALL = [(o, m) for o in reference.ROWWISE_STATE for m in reference.WEIGHT_DECAY_MODES]
# Every optimizer, and every mode with a full and with a row-wise state; the others are slow tests.
SOME = [(o, m) for o, m in ALL if m == "l2" or o in ("adam", "rowwise_adagrad")]


def hyper(step: int) -> Tensor:
    numbers = [0.05, 1e-8, 0.9, 0.999, 0.02, 1 - 0.9**step, 1 - 0.999**step, 0.0]
    return torch.tensor(numbers, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Case:
    """Lookups of a step and their gradient."""

    num_rows: int
    rows: Tensor
    sources: Tensor | None
    scales: Tensor | None
    grad: Tensor

    def lookups(self, device: str) -> Lookups:
        ordered, permutation = reference.plan_update(self.rows, self.num_rows)
        parts = (self.grad, ordered, permutation, self.sources, self.scales)
        return Lookups(*(None if p is None else p.to(device) for p in parts))

    def runs(self) -> reference.Runs:
        plan = reference.plan_update(self.rows, self.num_rows)
        return reference.find_runs(*plan, self.sources, self.scales, self.num_rows)


def make_case(
    rows: Sequence[int] | Tensor, num_rows: int, width: int = WIDTH, **kinds: object
) -> Case:
    """Return lookups of `rows` in scattered order, of random bags with random scales."""
    generator = torch.Generator().manual_seed(len(rows))
    rows = torch.as_tensor(rows, dtype=torch.int64)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    num_bags = 7
    return dataclasses.replace(
        Case(
            num_rows=num_rows,
            rows=rows,
            sources=torch.randint(0, num_bags, rows.shape, generator=generator),
            scales=torch.rand(rows.shape, generator=generator),
            grad=torch.randn(num_bags, width, generator=generator),
        ),
        **kinds,
    )


def runs_of(lengths: Sequence[int], first: int = 0) -> list[int]:
    return [first + i for i, length in enumerate(lengths) for _ in range(length)]


def mixed_rows() -> list[int]:
    """Rows 1 to 8 of 10: short runs, one with a full chunk at least, and sentinels."""
    return [*runs_of([1, 3, 0, 2 * CHUNK + 2, 2, 1, 2, 1], first=1), 10, 10, 10]


def few_programs(width: int) -> launch.Tiles:
    """Return tiles that make the interpreter quick: it takes its time per program."""
    return dataclasses.replace(launch.choose_tiles(width), positions=512, unroll=1)


def assert_gradient_is_right(case: Case, device: str) -> None:
    tiles = few_programs(case.grad.shape[1]) if device == "cpu" else None
    found = launch.dense_gradient(case.lookups(device), case.num_rows, tiles=tiles)
    expected = reference.dense_gradient(case.grad.double(), case.runs(), case.num_rows)
    torch.testing.assert_close(found.cpu().double(), expected, **FLOAT32)


def zero_state(optimizer: str, weight: Tensor) -> list[Tensor]:
    return [
        torch.zeros(weight.shape[:1] if is_rowwise else weight.shape)
        for is_rowwise in reference.ROWWISE_STATE[optimizer]
    ]


def run_kernel(
    case: Case,
    device: str,
    optimizer: str,
    mode: str,
    *,
    dtype: torch.dtype = torch.float32,
    seeds: Sequence[int | None] = (None,) * NUM_STEPS,
    tiles: launch.Tiles | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Return weights and state after some steps."""
    generator = torch.Generator().manual_seed(11)
    weight = torch.randn(case.num_rows, case.grad.shape[1], generator=generator).to(dtype)
    state = [part.to(device) for part in zero_state(optimizer, weight)]
    weight = weight.to(device)
    for step, seed in enumerate(seeds, start=1):
        launch.update_rows(
            weight,
            state,
            case.lookups(device),
            hyper(step).to(device),
            optimizer=optimizer,
            weight_decay_mode=mode,
            rounding_seed=seed,
            tiles=tiles or (few_programs(weight.shape[1]) if device == "cpu" else None),
        )
    return weight.cpu(), [part.cpu() for part in state]


def run_truth(
    case: Case,
    optimizer: str,
    mode: str,
    dtype: torch.dtype = torch.float32,
    *,
    num_steps: int = NUM_STEPS,
) -> tuple[Tensor, list[Tensor]]:
    """Return weights and state after some steps in float64."""
    generator = torch.Generator().manual_seed(11)
    weight = torch.randn(case.num_rows, case.grad.shape[1], generator=generator).to(dtype).double()
    state = [part.double() for part in zero_state(optimizer, weight)]
    for step in range(1, num_steps + 1):
        reference.update_rows(
            weight,
            state,
            case.grad.double(),
            case.runs(),
            hyper(step),
            optimizer=optimizer,
            weight_decay_mode=mode,
            rounding_seed=None,
        )
    return weight, state


def bits(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.view(torch.int16 if t.element_size() == 2 else torch.int32) for t in tensors]


def assert_bits_equal(
    first: tuple[Tensor, list[Tensor]], second: tuple[Tensor, list[Tensor]]
) -> None:
    for a, b in zip(bits([first[0], *first[1]]), bits([second[0], *second[1]]), strict=True):
        assert torch.equal(a, b)


def assert_steps_are_right(optimizer: str, mode: str, device: str) -> None:
    case = make_case(mixed_rows(), num_rows=10, width=3)
    weight, state = run_kernel(case, device, optimizer, mode)
    expected, expected_state = run_truth(case, optimizer, mode)
    torch.testing.assert_close(weight.double(), expected, **FLOAT32)
    for part, expected_part in zip(state, expected_state, strict=True):
        torch.testing.assert_close(part.double(), expected_part, **FLOAT32)


@pytest.mark.parametrize(("optimizer", "mode"), SOME)
def test_steps_are_those_of_the_reference(optimizer: str, mode: str, device: str) -> None:
    assert_steps_are_right(optimizer, mode, device)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "mode"), [pair for pair in ALL if pair not in SOME])
def test_steps_are_those_of_the_reference_in_other_modes(
    optimizer: str, mode: str, device: str
) -> None:
    assert_steps_are_right(optimizer, mode, device)


def assert_narrow_steps_are_right(
    optimizer: str, mode: str, dtype: torch.dtype, device: str
) -> None:
    case = make_case(mixed_rows(), num_rows=10, width=3)
    case = dataclasses.replace(case, grad=case.grad.to(dtype))
    seeds = (None, 5, 2**32 - 1)
    weight, _ = run_kernel(case, device, optimizer, mode, dtype=dtype, seeds=seeds)
    expected, _ = run_truth(case, optimizer, mode, dtype)
    # Roundings change what later steps start from, by an amount of their own size.
    tolerance = 2 * NARROW[dtype]
    torch.testing.assert_close(weight.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("optimizer", "mode"), [("rowwise_adagrad", "l2"), ("adam", "decoupled")])
def test_narrow_tables_are_rounded_from_float32(
    optimizer: str, mode: str, dtype: torch.dtype, device: str
) -> None:
    assert_narrow_steps_are_right(optimizer, mode, dtype, device)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("optimizer", "mode"), ALL)
def test_narrow_tables_with_every_optimizer(
    optimizer: str, mode: str, dtype: torch.dtype, device: str
) -> None:
    assert_narrow_steps_are_right(optimizer, mode, dtype, device)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_step_rounds_as_the_reference_does(dtype: torch.dtype, device: str) -> None:
    # Integers and powers of two, so that the float32 values before rounding are the same bits.
    weight = torch.arange(30.0).view(10, 3).to(dtype)
    grad = torch.arange(12.0).view(4, 3)
    rows = torch.tensor([7, 1, 7, 2])
    case = Case(10, rows, None, None, grad)
    numbers = torch.tensor([2.0**-9, 0, 0, 0, 0, 0, 0, 0])
    expected = weight.clone()
    options = {"optimizer": "sgd", "weight_decay_mode": "none", "rounding_seed": 77}
    reference.update_rows(expected, [], grad, case.runs(), numbers, **options)
    found = weight.clone().to(device)
    launch.update_rows(found, [], case.lookups(device), numbers.to(device), **options)
    assert torch.equal(found.cpu(), expected)
    assert not torch.equal(expected, weight)


@pytest.mark.parametrize("optimizer", ["rowwise_adam", "adagrad"])
def test_rows_without_lookups_keep_their_bits(optimizer: str, device: str) -> None:
    case = make_case(runs_of([1, 0, CHUNK + 1, 0], first=2), num_rows=9)
    start = run_kernel(case, device, optimizer, "l2", seeds=())
    end = run_kernel(case, device, optimizer, "l2", seeds=(None,))
    untouched = [0, 1, 3, 5, 6, 7, 8]
    assert torch.equal(bits([start[0]])[0][untouched], bits([end[0]])[0][untouched])
    assert bool((start[0][[2, 4]] != end[0][[2, 4]]).all())
    for before, after in zip(bits(start[1]), bits(end[1]), strict=True):
        assert torch.equal(before[untouched], after[untouched])


def test_two_runs_are_bit_equal(device: str) -> None:
    case = make_case(mixed_rows(), num_rows=10)
    first = run_kernel(case, device, "rowwise_adagrad", "l2", seeds=(None,))
    assert_bits_equal(first, run_kernel(case, device, "rowwise_adagrad", "l2", seeds=(None,)))


@pytest.mark.parametrize(("positions", "unroll"), [(1, 1), (8, 4), (512, 1)])
def test_tiles_of_short_runs_change_no_bit(positions: int, unroll: int, device: str) -> None:
    case = make_case(runs_of([1, 5, 0, 2, 9, 1]), num_rows=6)
    tiles = dataclasses.replace(launch.choose_tiles(WIDTH), positions=positions, unroll=unroll)
    found = run_kernel(case, device, "adagrad", "none", seeds=(None,), tiles=tiles)
    chosen = launch.choose_tiles(WIDTH)
    expected = run_kernel(case, device, "adagrad", "none", seeds=(None,), tiles=chosen)
    assert_bits_equal(found, expected)


@pytest.mark.parametrize("shift", [0, 1, CHUNK - 1])
def test_runs_of_lengths_around_the_chunk(shift: int, device: str) -> None:
    lengths = [shift, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1]
    assert_gradient_is_right(make_case(runs_of(lengths), num_rows=7, width=2), device)


@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 300])
def test_one_run_is_all_there_is(length: int, device: str) -> None:
    assert_gradient_is_right(make_case(runs_of([length], first=3), num_rows=5, width=3), device)


@pytest.mark.parametrize("length", [1, 2, CHUNK, 2 * CHUNK + 3])
def test_table_of_one_row(length: int, device: str) -> None:
    assert_gradient_is_right(make_case([0] * length, num_rows=1), device)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 10, 16, 64, 128, 300])
def test_widths(width: int, device: str) -> None:
    case = make_case(mixed_rows(), num_rows=10, width=width)
    weight, _ = run_kernel(case, device, "rowwise_adagrad", "none", seeds=(None,))
    expected, _ = run_truth(case, "rowwise_adagrad", "none", num_steps=1)
    torch.testing.assert_close(weight.double(), expected, **FLOAT32)


def test_half_of_the_lookups_are_of_one_row(device: str) -> None:
    rows = torch.randint(0, 40, (600,), generator=torch.Generator().manual_seed(4))
    rows[::2] = 17
    assert_gradient_is_right(make_case(rows, num_rows=40, width=4), device)


@pytest.mark.parametrize("length", [1, 5, CHUNK, 2 * CHUNK + 1])
def test_sentinels_touch_nothing(length: int, device: str) -> None:
    case = make_case([9] * length, num_rows=9)
    assert not launch.dense_gradient(case.lookups(device), 9).any()
    start = run_kernel(case, device, "adam", "decoupled", seeds=())
    assert_bits_equal(start, run_kernel(case, device, "adam", "decoupled", seeds=(None,)))


def test_rows_outside_the_table_touch_nothing(device: str) -> None:
    rows = [-5] * (CHUNK + 1) + [2, 3] + [2**31 - 1] * CHUNK
    assert_gradient_is_right(make_case(rows, num_rows=4, width=2), device)


@pytest.mark.parametrize("row", [0, 3, 4])
def test_one_lookup(row: int, device: str) -> None:
    assert_gradient_is_right(make_case([row], num_rows=4), device)


def test_no_lookups(device: str) -> None:
    case = make_case([], num_rows=4)
    start = run_kernel(case, device, "adam", "l2", seeds=())
    assert_bits_equal(start, run_kernel(case, device, "adam", "l2", seeds=(None,)))
    distinct, sums, count = launch.segment_sum(case.lookups(device), 4)
    assert (distinct.shape, sums.shape, int(count)) == ((0,), (0, WIDTH), 0)


@pytest.mark.parametrize("num_rows", [10, 2**31 - 1])
def test_int32_and_int64_keys_give_the_same_sums(num_rows: int, device: str) -> None:
    # 2^31 - 1 rows are sorted as int64; segment_sum needs no table of that size.
    rows = [num_rows - 1 - r for r in mixed_rows()]
    case = make_case(rows, num_rows=num_rows, width=4)
    lookups = case.lookups(device)
    assert lookups.sorted_rows.dtype == (torch.int32 if num_rows == 10 else torch.int64)
    found = launch.segment_sum(lookups, num_rows)
    expected = reference.segment_sum(
        case.grad.double(), case.runs(), len(rows), num_rows, lookups.sorted_rows.dtype
    )
    assert torch.equal(found[0].cpu(), expected[0])
    torch.testing.assert_close(found[1].cpu().double(), expected[1], **FLOAT32)
    assert int(found[2]) == int(expected[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_gradients_are_summed_in_float32(dtype: torch.dtype, device: str) -> None:
    case = make_case(mixed_rows(), num_rows=10, width=4)
    assert_gradient_is_right(dataclasses.replace(case, grad=case.grad.to(dtype)), device)


def test_lookup_reads_its_own_row_without_sources(device: str) -> None:
    rows = mixed_rows()
    grad = torch.randn(len(rows), 4, generator=torch.Generator().manual_seed(6))
    assert_gradient_is_right(make_case(rows, num_rows=10, sources=None, grad=grad), device)


def test_scales_default_to_one(device: str) -> None:
    assert_gradient_is_right(make_case(mixed_rows(), num_rows=10, width=2, scales=None), device)


@pytest.mark.parametrize("lengths", [[600], [1, 500, 3, 150], [129, 64, 300, 9]])
def test_groups_of_chunks_sum_to_the_same(
    lengths: list[int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "GROUPS_FROM", 0)
    monkeypatch.setattr(launch, "FAN", 2)
    assert_gradient_is_right(make_case(runs_of(lengths), num_rows=4, width=2), device)


@pytest.mark.gpu
def test_a_million_lookups_of_one_row() -> None:
    case = make_case(torch.zeros(1 << 20, dtype=torch.int64), num_rows=2, width=64)
    assert_gradient_is_right(dataclasses.replace(case, scales=None), "cuda")
