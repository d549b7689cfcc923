"""Ranks of bits: what the steps give, what they weigh, JSON."""

import pytest
import torch

from recemb.tables.program import (
    ABSENT,
    may_be_absent,
    program_from_json,
    program_limit,
    program_to_json,
    run_program,
)
from recemb.tables.ranked import Ranked, ranked_buffers, ranked_bytes


def step_of(kept):
    words, ranks = ranked_buffers(kept)
    return Ranked(words="words", ranks="ranks", size=int(kept.sum())), {
        "words": words,
        "ranks": ranks,
    }


@pytest.mark.parametrize("num_ids", [1, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_that_are_left_are_numbered_in_order(num_ids, share, dtype):
    kept = torch.rand(num_ids) < share
    step, buffers = step_of(kept)
    number, expected = 0, []
    for flag in kept.tolist():
        expected.append(number if flag else ABSENT)
        number += flag
    ids = torch.arange(num_ids, dtype=dtype)
    assert run_program((step,), ids, buffers).tolist() == expected


def test_the_last_bit_of_a_word_is_like_the_others():
    kept = torch.zeros(128, dtype=torch.bool)
    kept[[63, 64, 127]] = True
    step, buffers = step_of(kept)
    found = step.apply(torch.tensor([62, 63, 64, 65, 126, 127]), buffers)
    assert found.tolist() == [ABSENT, 0, 1, ABSENT, ABSENT, 2]


@pytest.mark.parametrize(("num_ids", "expected"), [(1, 12), (64, 12), (65, 24), (6400, 1200)])
def test_bytes_are_those_of_the_buffers(num_ids, expected):
    _, buffers = step_of(torch.ones(num_ids, dtype=torch.bool))
    assert ranked_bytes(num_ids) == expected == sum(t.nbytes for t in buffers.values())


def test_rows_are_below_the_number_of_ones_and_may_be_absent():
    step, _ = step_of(torch.tensor([True, False, True]))
    assert program_limit((step,), 3, {}) == 2
    assert may_be_absent((step,))


def test_it_goes_to_json_and_back():
    step, _ = step_of(torch.tensor([True]))
    assert program_from_json(program_to_json((step,))) == (step,)


def test_a_negative_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="size must not be negative, got -1"):
        Ranked(words="w", ranks="r", size=-1)
