"""Address programs: each step against its formula, limits, JSON."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recemb.ids.hashing import hash_rows
from recemb.tables.program import (
    Digit,
    Hash,
    Offset,
    Remap,
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
        ((Remap(buffer="unknown"),), 10, None),
    ],
)
def test_limit_bounds_every_row(program, limit, expected):
    assert program_limit(program, limit, {"b": 6}) == expected


def test_json_gives_the_program_back():
    program = (*PROGRAM, Hash(seed=2**32 - 1, num_rows=8, exact=2))
    assert program_from_json(program_to_json(program)) == program


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
    ],
)
def test_json_of_no_program_is_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        program_from_json([entry])
