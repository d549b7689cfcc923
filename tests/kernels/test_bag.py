"""The pooled lookup: slots, the reference against the definition, the ops' contracts."""

import pytest
import torch
from torch import Tensor

from recemb.kernels import bag
from recemb.kernels.bag import reference
from recemb.kernels.hashing import hash_rows

# Slots on 3 features, of which feature 1 is unused: several on one feature and on the same rows
# with other seeds, hashed and not, sum and mean, out of order.
FEATURES = [2, 0, 0, 2, 0]
FIRST_ROWS = [0, 7, 7, 20, 0]
NUM_ROWS = [7, 13, 13, 5, 7]
SEEDS = [0, 1, 2**32 - 1, 0, 9]
IS_HASHED = [False, True, True, False, False]
IS_MEAN = [True, False, True, False, True]
TABLE_ROWS = 25
SLOTS = (FEATURES, FIRST_ROWS, NUM_ROWS, SEEDS, IS_HASHED, IS_MEAN)
# Two features of three bags, the third feature's ids among them out of range and negative.
LENGTHS = [[2, 0, 1], [1, 1, 0], [0, 3, 4]]
VALUES = [3, 3, 6, 100, -5, 1, 2, 99, -1, 4, 4, -(2**31)]
# One rounding per added row, rows and weights being of order one.
FLOAT32 = {"atol": 1e-5, "rtol": 1e-5}
FLOAT64 = {"atol": 1e-13, "rtol": 1e-13}


def offsets_of(lengths: list[list[int]]) -> Tensor:
    return torch.nn.functional.pad(torch.tensor(lengths).flatten().cumsum(0), (1, 0))


def row_of(x: int, slot: int, policy: str) -> int | None:
    """The row of an id by the documented rules; None if it is ignored."""
    if IS_HASHED[slot]:
        hashed = hash_rows(torch.tensor([x]), SEEDS[slot], NUM_ROWS[slot])
        return FIRST_ROWS[slot] + int(hashed)
    if 0 <= x < NUM_ROWS[slot]:
        return FIRST_ROWS[slot] + x
    return FIRST_ROWS[slot] if policy == "clamp" else None


def lookups_by_definition(policy: str, weights: Tensor | None) -> list[tuple[int, int, float]]:
    """(row or -1, b * S + s, scale) of each lookup, slot after slot."""
    offsets = offsets_of(LENGTHS).tolist()
    found = []
    for slot, feature in enumerate(FEATURES):
        for b in range(3):
            ids = range(offsets[feature * 3 + b], offsets[feature * 3 + b + 1])
            rows = [row_of(VALUES[p], slot, policy) for p in ids]
            count = sum(row is not None for row in rows) if IS_MEAN[slot] else 1
            for p, row in zip(ids, rows, strict=True):
                factor = 1.0 if weights is None else float(weights[p])
                source = b * len(FEATURES) + slot
                found.append((-1 if row is None else row, source, factor / max(count, 1)))
    return found


def forward_by_definition(weight: Tensor, policy: str, weights: Tensor | None) -> Tensor:
    out = torch.zeros(3 * len(FEATURES), weight.shape[1], dtype=torch.float64)
    for row, source, scale in lookups_by_definition(policy, weights):
        if row >= 0:
            out[source] += scale * weight[row].double()
    return out.view(3, -1)


def some_weights(is_weighted: bool) -> Tensor | None:
    return torch.linspace(-1, 2, len(VALUES)) if is_weighted else None


@pytest.mark.parametrize("policy", ["ignore", "clamp"])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_reference_is_the_definition(policy: str, is_weighted: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(TABLE_ROWS, 3).to(dtype)
    weights = some_weights(is_weighted)
    found = reference.bag_forward(
        weight,
        torch.tensor(VALUES),
        offsets_of(LENGTHS),
        weights,
        bag.pack_slots(*SLOTS),
        batch_size=3,
        policy=policy,
        out_dtype=torch.float64,
    )
    tolerance = FLOAT64 if dtype == torch.float64 else FLOAT32
    torch.testing.assert_close(found, forward_by_definition(weight, policy, weights), **tolerance)


@pytest.mark.parametrize("policy", ["ignore", "clamp"])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_list_of_lookups_is_the_definition(policy: str, is_weighted: bool) -> None:
    weights = some_weights(is_weighted)
    expected = lookups_by_definition(policy, weights)
    num_lookups = bag.count_lookups([sum(row) for row in LENGTHS], FEATURES)
    assert num_lookups == len(expected)
    rows, sources, scales = bag.bag_rows(
        torch.tensor(VALUES),
        offsets_of(LENGTHS),
        bag.pack_slots(*SLOTS),
        batch_size=3,
        policy=policy,
        sentinel=TABLE_ROWS,
        num_lookups=num_lookups,
        weights=weights,
    )
    assert rows.tolist() == [TABLE_ROWS if row < 0 else row for row, _, _ in expected]
    assert sources.tolist() == [source for _, source, _ in expected]
    assert scales is not None
    used = rows < TABLE_ROWS
    of_used = torch.tensor([scale for row, _, scale in expected if row >= 0])
    torch.testing.assert_close(scales[used], of_used)


def test_one_id_per_bag_needs_no_offsets() -> None:
    weight = torch.randn(TABLE_ROWS, 4)
    values = torch.tensor([6, 0, 3, 1, 2, 3, 4, -9, 4])
    slots = bag.pack_slots(*SLOTS)
    found = [
        bag.bag_forward(weight, values, offsets, None, slots, batch_size=3, policy="ignore")
        for offsets in (None, torch.arange(10), torch.arange(10, dtype=torch.int32))
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    plain = found[0].view(3, 5, 4)[:, 4]
    assert torch.equal(plain, weight[values[:3]])


def test_plain_sum_is_embedding_bag() -> None:
    weight = torch.randn(9, 8)
    values, offsets = torch.tensor([1, 8, 8, 0, 2]), torch.tensor([0, 2, 2, 5])
    slots = bag.pack_slots([0], [0], [9], [0], [False], [False])
    expected = torch.nn.functional.embedding_bag(
        values, weight, offsets, mode="sum", include_last_offset=True
    )
    found = bag.bag_forward(weight, values, offsets, None, slots, batch_size=3)
    torch.testing.assert_close(found, expected)


def test_int32_ids_read_the_same_rows() -> None:
    weight, slots = torch.randn(TABLE_ROWS, 4), bag.pack_slots(*SLOTS)
    values, offsets = torch.tensor(VALUES), offsets_of(LENGTHS)
    arguments = {"batch_size": 3, "policy": "ignore"}
    wide = bag.bag_forward(weight, values, offsets, None, slots, **arguments)
    narrow = bag.bag_forward(weight, values.int(), offsets.int(), None, slots, **arguments)
    assert torch.equal(wide, narrow)


def test_ignored_rows_do_not_leak_nan() -> None:
    weight = torch.full((4, 3), float("nan"))
    slots = bag.pack_slots([0], [0], [4], [0], [False], [True])
    for offsets in (None, torch.tensor([0, 0, 2])):
        values = torch.tensor([-1, 4])
        found = bag.bag_forward(weight, values, offsets, None, slots, batch_size=2, policy="ignore")
        assert torch.equal(found, torch.zeros(2, 3))


def test_float64_accumulator_keeps_small_terms() -> None:
    weight = torch.tensor([[1e8], [1.0], [-1e8]])
    values = torch.tensor([0, 1, 2])
    slots = bag.pack_slots([0], [0], [3], [0], [False], [False])
    offsets = torch.tensor([0, 3])
    wide = bag.bag_forward(
        weight, values, offsets, None, slots, batch_size=1, accumulate_float64=True
    )
    assert wide.tolist() == [[1.0]]


def test_lookup_past_the_count_is_an_error() -> None:
    slots = bag.pack_slots([0], [0], [3], [0], [False], [False])
    with pytest.raises(ValueError, match="num_lookups is 1, but the batch has 2 lookups"):
        bag.bag_rows(
            torch.tensor([0, 1]),
            torch.tensor([0, 2]),
            slots,
            batch_size=1,
            policy="trust",
            sentinel=3,
            num_lookups=1,
        )


def test_large_sentinel_makes_int64_rows() -> None:
    slots = bag.pack_slots([0], [2**40], [3], [0], [False], [False])
    rows, _, _ = bag.bag_rows(
        torch.tensor([2]), None, slots, batch_size=1, policy="trust", sentinel=2**41
    )
    assert rows.tolist() == [2**40 + 2]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, -1, r"features of slot 0 must be in \[0, 2147483648\), got -1"),
        (1, -1, "first_rows of slot 0"),
        (2, 0, r"num_rows of slot 0 must be in \[1, 2147483648\), got 0"),
        (2, 2**31, "num_rows of slot 0"),
        (3, 2**32, "seeds of slot 0"),
    ],
)
def test_slots_outside_their_range_are_errors(column: int, value: int, message: str) -> None:
    columns = [[0], [0], [3], [0], [False], [False]]
    columns[column] = [value]
    with pytest.raises(ValueError, match=message):
        bag.pack_slots(*columns)


def test_slots_of_different_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"got lengths \[2, 1, 1, 1, 1, 1\]"):
        bag.pack_slots([0, 1], [0], [3], [0], [False], [False])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "wrap"}, "policy must be one of trust, ignore, clamp, got 'wrap'"),
        ({"values": torch.zeros(6)}, r"values must be \(N,\) int64 or int32, got \(6,\) float32"),
        ({"batch_size": 4}, "must be a multiple of batch_size 4, got 6"),
        ({"offsets": torch.zeros(6).long()}, r"offsets must be \(F \* batch_size \+ 1,\)"),
        ({"weights": torch.zeros(5)}, r"weights must be one float per id, shape \(6,\)"),
        ({"slots": torch.zeros(4, 2)}, r"slots must be \(5, S\) int64, got \(4, 2\) float32"),
        ({"weight": torch.zeros(3, 8).t()}, r"weight must be \(R, D\), contiguous"),
        ({"weight": torch.zeros(3, 8).int()}, r"weight must be .* got \(3, 8\) int32"),
        ({"weight": torch.zeros(3, 8, requires_grad=True)}, "use bag_dense"),
        ({"values": torch.zeros(6).long().to("meta")}, "slots are on cpu and values on meta"),
    ],
)
def test_arguments_that_do_not_fit_are_errors(change: dict[str, object], message: str) -> None:
    arguments = {
        "weight": torch.zeros(3, 8),
        "values": torch.zeros(6).long(),
        "offsets": None,
        "weights": None,
        "slots": bag.pack_slots([0], [0], [3], [0], [False], [False]),
        "batch_size": 3,
    }
    with pytest.raises(ValueError, match=message):
        bag.bag_forward(**{**arguments, **change})


def test_ops_pass_opcheck() -> None:
    weight, values = torch.randn(TABLE_ROWS, 4), torch.tensor(VALUES)
    offsets, weights = offsets_of(LENGTHS), torch.rand(len(VALUES))
    slots = bag.pack_slots(*SLOTS)
    forward = torch.ops.recemb.bag_forward.default
    rows = torch.ops.recemb.bag_rows.default
    for factors in (None, weights):
        torch.library.opcheck(
            forward, (weight, values, offsets, factors, slots, 3, "clamp", torch.float32, False)
        )
    for dtype in (None, torch.float32):
        torch.library.opcheck(
            rows, (values, offsets, None, slots, 3, "ignore", TABLE_ROWS, 40, dtype)
        )
