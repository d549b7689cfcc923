"""Rows of different bits, one after the other: what they stand for, and their bytes."""

import numpy as np
import pytest
import torch

from recemb.methods.mixed_rows import MixedForm, MixedRows

BITS = (0, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("width", [1, 3, 16])
@pytest.mark.parametrize("sizes", [(1,), (64,), (63, 2), (200, 1, 130)])
def test_rows_are_integers_times_the_step_of_their_bits(width, sizes):
    draw = np.random.default_rng(0)
    n = sum(sizes)
    classes = draw.integers(0, 7, n).astype(np.uint8)
    bits = np.array(BITS)[classes]
    low = -(2.0 ** (bits - 1))
    span = np.where(bits > 0, 2**bits, 1)
    q = (np.floor(low) * (bits > 0))[:, None] + draw.integers(0, span[:, None], (n, width))
    steps = draw.uniform(0.01, 0.1, 7).astype(np.float32)
    offsets = draw.normal(size=width).astype(np.float32)
    counts = tuple(np.bincount(classes, minlength=7).tolist())
    names = [f"t{i}" for i in range(len(sizes))]
    form = MixedForm(
        num_rows=dict(zip(names, sizes, strict=True)), width=width, bits=BITS, counts=counts
    )
    made = MixedRows.of(
        torch.from_numpy(q),
        torch.from_numpy(classes),
        form,
        steps=torch.from_numpy(steps),
        offsets=torch.from_numpy(offsets),
    )
    expected = q.astype(np.float32) * steps[classes][:, None] + offsets
    expected[bits == 0] = 0
    first = 0
    for name, size in zip(names, sizes, strict=True):
        ids = torch.from_numpy(draw.permutation(np.repeat(np.arange(size), 2)))
        assert np.array_equal(made(name, ids).numpy(), expected[first + ids.numpy()])
        first += size
    stored = sum(tensor.nbytes for _, tensor in made.parts())
    codes = int(sum(-(-width * int(b) // 8) for b in bits))
    assert stored == codes + -(-n // 2) + 4 * -(-n // 64) + 4 * 7 + 4 * width == form.num_bytes


def test_starts_are_wide_where_rows_take_two_gigabytes():
    form = MixedForm(num_rows={"t": 2**30}, width=16, bits=(0, 4), counts=(0, 2**30))
    assert form.tensors()["starts"] == (2**24, torch.int64)


def test_more_numbers_of_bits_than_a_nibble_tells_apart_are_refused():
    with pytest.raises(ValueError, match="1 to 16 numbers of bits"):
        MixedForm(num_rows={"t": 1}, width=1, bits=tuple(range(17)), counts=(1,) * 17)
