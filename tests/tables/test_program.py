"""Address programs: each step against its formula, limits, JSON."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recemb.ids.hashing import hash_rows
from recemb.tables.program import (
    ABSENT,
    Bits,
    Digit,
    Hash,
    Offset,
    Remap,
    Within,
    may_be_absent,
    program_from_json,
    program_limit,
    program_to_json,
    run_program,
)

IDS = torch.tensor([0, 1, 5, 41, 99])
PROGRAM = (Remap(buffer="codes", column=1), Digit(divisor=3, modulus=4), Offset(first=7))


def test_no_steps_are_the_identity():
    assert torch.equal(run_program((), IDS, {}), IDS)


def test_offset_adds():
    assert run_program((Offset(first=3),), IDS, {}).tolist() == [3, 4, 8, 44, 102]


def test_hash_is_the_hash_of_ids():
    expected = hash_rows(IDS.numpy(), 7, 11)
    assert run_program((Hash(seed=7, num_rows=11),), IDS, {}).tolist() == expected.tolist()


def test_ids_below_exact_keep_their_row_and_others_never_touch_it():
    ids = torch.arange(-50, 1000)
    rows = run_program((Hash(seed=7, num_rows=11, exact=4),), ids, {})
    inside = (ids >= 0) & (ids < 4)
    assert torch.equal(rows[inside], ids[inside])
    assert set(rows[~inside].tolist()) == set(range(4, 11))


@given(st.integers(0, 10**9), st.integers(1, 1000), st.integers(1, 1000))
def test_quotient_and_remainder_give_the_id_back(x, m, n):
    ids = torch.tensor([x])
    quotient = run_program((Digit(divisor=m),), ids, {})
    remainder = run_program((Digit(modulus=m),), ids, {})
    assert int(quotient * m + remainder) == x
    digits = [(Digit(modulus=m),), (Digit(divisor=m, modulus=n),), (Digit(divisor=m * n),)]
    low, middle, high = (int(run_program(p, ids, {})) for p in digits)
    assert low + m * (middle + n * high) == x


def test_digits_of_negative_ids_round_down():
    ids = torch.tensor([-1, -7])
    assert run_program((Digit(modulus=5),), ids, {}).tolist() == [4, 3]
    assert run_program((Digit(divisor=5),), ids, {}).tolist() == [-1, -2]


def test_adjacent_bits_are_a_binary_digit():
    ids = torch.arange(1000)
    found = run_program((Bits(places=(3, 4, 5)),), ids, {})
    assert torch.equal(found, run_program((Digit(divisor=8, modulus=8),), ids, {}))


def test_bits_are_gathered_in_the_order_of_their_places():
    ids = torch.tensor([0b101101, 0b010010])
    assert run_program((Bits(places=(0, 2, 4)),), ids, {}).tolist() == [0b011, 0b100]
    assert run_program((Bits(places=(5, 0)),), ids, {}).tolist() == [0b11, 0b00]


def test_bits_reach_the_highest_of_an_id():
    ids = torch.tensor([2**62 + 1, 2**40])
    assert run_program((Bits(places=(62, 40)),), ids, {}).tolist() == [1, 2]


@given(st.integers(1, 300), st.permutations(range(9)), st.integers(1, 9))
def test_the_limit_of_bits_is_reached_and_not_passed(limit, order, num):
    step = Bits(places=tuple(order[:num]))
    largest = int(run_program((step,), torch.arange(limit), {}).max())
    assert step.limit(limit, {}) == largest + 1


def test_bits_that_cover_an_id_tell_all_ids_apart():
    ids = torch.arange(512)
    blocks = [(0, 3, 6, 1), (4, 7, 2, 5), (8,)]
    codes = torch.stack([run_program((Bits(places=b),), ids, {}) for b in blocks], dim=1)
    assert len(torch.unique(codes, dim=0)) == 512


def test_ids_within_a_range_count_from_its_start_and_others_have_no_row():
    assert run_program((Within(first=5, end=99),), IDS, {}).tolist() == [-1, -1, 0, 36, ABSENT]
    assert run_program((Within(end=6),), IDS, {}).tolist() == [0, 1, 5, ABSENT, ABSENT]
    assert run_program((Within(first=41),), IDS, {}).tolist() == [-1, -1, -1, 0, 58]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ((), False),
        ((Hash(seed=1, num_rows=9),), False),
        ((Remap(buffer="b", is_total=True),), False),
        ((Remap(buffer="b"),), True),
        ((Remap(buffer="b", is_total=True), Within(end=4)), True),
    ],
)
def test_programs_say_whether_an_id_may_have_no_row(program, expected):
    assert may_be_absent(program) == expected


def test_steps_run_in_order():
    codes = torch.stack([torch.zeros(100), torch.arange(100) * 2], dim=1).int()
    expected = [(2 * x // 3) % 4 + 7 for x in IDS.tolist()]
    assert run_program(PROGRAM, IDS, {"codes": codes}).tolist() == expected


@pytest.mark.parametrize(
    ("program", "limit", "expected"),
    [
        ((), 10, 10),
        ((), None, None),
        ((Offset(first=3),), 10, 13),
        ((Hash(seed=0, num_rows=5), Offset(first=2)), None, 7),
        ((Digit(divisor=3),), 10, 4),
        ((Digit(modulus=3),), None, 3),
        ((Digit(divisor=3, modulus=100),), 10, 4),
        ((Remap(buffer="b"),), 10, 6),
        ((Bits(places=(1, 2)),), None, 4),
        ((Within(first=2),), 10, 8),
        ((Within(first=2, end=5),), None, 3),
        ((Within(first=2),), None, None),
        ((Within(first=12),), 10, 0),
        ((Remap(buffer="unknown"),), 10, None),
    ],
)
def test_limit_bounds_every_row(program, limit, expected):
    assert program_limit(program, limit, {"b": 6}) == expected


def test_json_gives_the_program_back():
    program = (
        *PROGRAM,
        Bits(places=(2, 0, 5)),
        Hash(seed=2**32 - 1, num_rows=8, exact=2),
        Within(first=2),
    )
    text = json.dumps(program_to_json(program))
    assert program_from_json(json.loads(text)) == program


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"step": "shift", "by": 1}, "step must be one of .*, got 'shift'"),
        ({"by": 1}, "got None"),
        ({"step": "offset", "by": 1}, "step 'offset' has wrong fields"),
        ({"step": "hash", "seed": 0, "num_rows": 0}, "num_rows must be in"),
        ({"step": "hash", "seed": -1, "num_rows": 5}, "seed must be in"),
        ({"step": "hash", "seed": 1, "num_rows": 5, "exact": 5}, "leave a row to hash to"),
        ({"step": "digit", "divisor": 0}, "at least 1"),
        ({"step": "bits", "places": []}, "at least one"),
        ({"step": "bits", "places": [3, 3]}, "different numbers"),
        ({"step": "bits", "places": [63]}, "in .0, 63."),
        ({"step": "bits", "places": [1.5]}, "different numbers"),
        ({"step": "within", "first": 4, "end": 4}, "below end, got 4 and 4"),
    ],
)
def test_json_of_no_program_is_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        program_from_json([entry])
