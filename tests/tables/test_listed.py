"""Steps that tell listed ids from others: places, marks, rows, and what they promise of limits."""

import pytest
import torch

from recemb.tables.listed import MARKED, UNMARKED, Bucketed, Listed, find_slots
from recemb.tables.program import (
    ABSENT,
    Hash,
    may_be_absent,
    program_from_json,
    program_limit,
    program_to_json,
    run_program,
)

NONE = torch.iinfo(torch.int32).max
# Keys 13 and 17 are ids 3 and 7 of a table whose first key is 10; the third place is unused.
LIST = {"keys": torch.tensor([13, 17, NONE], dtype=torch.int32)}
IDS = torch.tensor([0, 3, 5, 7])


def bucketed_buffers():
    """Return eight buckets with keys 13 (row 1), 17 (marked) and 15 (neither)."""
    keys = torch.full((8, 4), -1, dtype=torch.int32)
    rows = torch.full((8, 4), UNMARKED, dtype=torch.int32)
    wanted = Hash(seed=5, num_rows=8).apply(torch.tensor([13, 17, 15]), {})
    for slot, (bucket, key, row) in enumerate(
        zip(wanted.tolist(), [13, 17, 15], [1, MARKED, UNMARKED], strict=True)
    ):
        keys[bucket, slot], rows[bucket, slot] = key, row
    return {"keys": keys, "rows": rows}


def listed(gives):
    return Listed(keys="keys", size=3, first=10, gives=gives)


def bucketed(gives):
    return Bucketed(keys="keys", rows="rows", size=2, seed=5, first=10, gives=gives)


@pytest.mark.parametrize(
    ("gives", "expected"),
    [("place", [3, 0, 8, 1]), ("mark", [0, 4, 0, 8]), ("row", [ABSENT, 0, ABSENT, 1])],
)
def test_a_sorted_list_gives_places_marks_and_rows(gives, expected):
    assert listed(gives).apply(IDS, LIST).tolist() == expected


@pytest.mark.parametrize(
    ("gives", "expected"),
    [("place", [2, 1, 7, 9]), ("mark", [0, 0, 0, 8]), ("row", [ABSENT, 1, ABSENT, ABSENT])],
)
def test_buckets_give_rows_and_marks(gives, expected):
    assert bucketed(gives).apply(IDS, bucketed_buffers()).tolist() == expected


def test_slots_are_found_by_key():
    buffers = bucketed_buffers()
    slots, rows = find_slots(buffers["keys"], buffers["rows"], torch.tensor([13, 14, 17]), 5)
    assert buffers["keys"].view(-1)[slots[[0, 2]]].tolist() == [13, 17]
    assert (int(slots[1]), rows.tolist()) == (-1, [1, UNMARKED, MARKED])


@pytest.mark.parametrize("make", [listed, bucketed])
@pytest.mark.parametrize("gives", ["place", "mark", "row"])
def test_the_limit_is_above_all_numbers_and_json_keeps_the_step(make, gives):
    step = make(gives)
    buffers = {**bucketed_buffers(), **(LIST if make is listed else {})}
    ids = torch.arange(9)
    assert int(step.apply(ids, buffers).max()) < program_limit((step,), 9, {})
    assert program_from_json(program_to_json((step,))) == (step,)
    assert may_be_absent((step,)) == (gives == "row")


def test_a_hash_keeps_places_and_shares_rows_from_where_it_is_told():
    program = (listed("place"), Hash(seed=1, num_rows=20, exact=3, first=12))
    rows = run_program(program, torch.arange(200), LIST)
    assert rows[[3, 7]].tolist() == [0, 1]
    others = torch.cat([rows[:3], rows[4:7], rows[8:]])
    assert set(others.tolist()) == set(range(12, 20))


@pytest.mark.parametrize("first", [2, 20])
def test_shared_rows_outside_the_table_or_among_the_exact_ones_are_refused(first):
    with pytest.raises(ValueError, match="Hash: first must be in"):
        Hash(seed=1, num_rows=20, exact=3, first=first)


@pytest.mark.parametrize("wrong", [{"gives": "rank"}, {"size": 0}, {"first": -1}], ids=str)
def test_words_and_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="listed ids: "):
        Listed(**{"keys": "keys", "size": 3, **wrong})
