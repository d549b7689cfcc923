"""Blocked rows: the formula, the limit, JSON."""

import pytest
import torch

from recemb.tables.blocked import Blocked
from recemb.tables.program import (
    Offset,
    program_from_json,
    program_limit,
    program_to_json,
    run_program,
)

STEP = Blocked(buffer="map", block_rows=3)
MAP = {"map": torch.tensor([1, 0, 1, 2], dtype=torch.int16)}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_block_lies_where_the_buffer_says(dtype):
    ids = torch.tensor([0, 2, 3, 5, 6, 8, 11], dtype=dtype)
    assert run_program((STEP,), ids, MAP).tolist() == [3, 5, 0, 2, 3, 5, 8]


def test_tables_behind_one_another_share_blocks():
    ids = torch.tensor([0, 1])
    assert run_program((Offset(first=8), STEP), ids, MAP).tolist() == [5, 6]


def test_rows_are_below_the_blocks_times_their_rows():
    assert program_limit((STEP,), 12, {"map": 3}) == 9
    assert program_limit((STEP,), 12, {}) is None


def test_it_goes_to_json_and_back():
    assert program_from_json(program_to_json((STEP,))) == (STEP,)


def test_blocks_without_rows_are_refused():
    with pytest.raises(ValueError, match="block_rows must be at least 1, got 0"):
        Blocked(buffer="map", block_rows=0)
