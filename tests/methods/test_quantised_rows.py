"""Integers, steps and offsets: what they stand for, and their bytes."""

import numpy as np
import pytest
import torch

from recemb.methods.quantised_rows import (
    Integers,
    QuantisedForm,
    QuantisedRows,
    dequantise,
    fitting_bits,
    quantise,
)


@pytest.mark.parametrize(
    ("width", "bits", "expected"),
    [(16, 4, 4), (1, 4, 8), (1, 2, 8), (3, 4, 5), (5, 3, 3), (1, 9, 16)],
)
def test_a_row_uses_the_bits_of_its_whole_bytes(width, bits, expected):
    assert fitting_bits(width, bits) == expected


@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("width", [1, 3, 16])
@pytest.mark.parametrize(("num_steps", "num_offsets"), [(1, 0), (1, 1), (7, 0)])
def test_rows_are_integers_times_steps_and_an_offset(bits, width, num_steps, num_offsets):
    draw = np.random.default_rng(0)
    q = draw.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (7, width))
    steps = draw.uniform(0.01, 0.1, num_steps).astype(np.float32)
    offsets = draw.normal(size=num_offsets).astype(np.float32)
    form = QuantisedForm(
        num_rows=7, width=width, bits=bits, num_steps=num_steps, num_offsets=num_offsets
    )
    made = QuantisedRows.of(
        lambda first, last: torch.from_numpy(q[first:last]),
        form,
        steps=torch.from_numpy(steps),
        offsets=torch.from_numpy(offsets) if num_offsets else None,
    )
    ids = torch.tensor([3, 0, 6, 3])
    expected = q.astype(np.float32) * steps.reshape(-1, 1)
    if num_offsets:
        expected = expected + offsets
    assert np.array_equal(made("t", ids).numpy(), expected[ids.numpy()])
    stored = sum(tensor.nbytes for _, tensor in made.parts())
    assert stored == 7 * -(-width * bits // 8) + 4 * (num_steps + num_offsets) == form.num_bytes


def test_more_rows_than_a_chunk_are_all_packed():
    q = torch.randint(-8, 8, (70_001, 2))
    form = QuantisedForm(num_rows=70_001, width=2, bits=4)
    made = QuantisedRows.of(lambda first, last: q[first:last], form, steps=torch.ones(1))
    assert torch.equal(made("t", torch.arange(70_001)), q.float())


def test_rounding_finds_the_nearest_integer_of_the_range():
    values = torch.tensor([[0.11, -0.26, 9.0, -9.0]])
    q = quantise(values, torch.tensor([0.1]), torch.tensor([0.01]), Integers(bits=3))
    assert q.tolist() == [[1, -3, 3, -4]]
    expected = torch.tensor([[0.11, -0.29, 0.31, -0.39]])
    found = dequantise(q, torch.tensor([0.1]), torch.tensor([0.01]))
    torch.testing.assert_close(found, expected)
