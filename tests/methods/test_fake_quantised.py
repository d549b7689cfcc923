"""Rounding while training: the gradients of LSQ and LSQ+ by hand, and serving to the bit."""

import math

import pytest
import torch

from recemb.methods.fake_quantised import fake_quantise, pass_through
from recemb.methods.quantised_rows import Integers

INTEGERS = Integers(bits=3)  # from -4 to 3
# Inside, on each end and beyond.
UNITS = [[0.3, -1.7, 2.6], [3.0, -4.0, 9.0], [-7.0, 0.5, 1.5]]


def gradients(width):
    """Return values, what `fake_quantise` gives for them, and its gradients."""
    # Powers of two, so that the ends are met exactly.
    steps = torch.tensor([[0.125], [0.25]], dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([[0.5], [-0.25]], dtype=torch.float64).repeat(1, width)
    offsets.requires_grad_()
    places = torch.tensor([0, 1, 0])
    units = torch.tensor(UNITS, dtype=torch.float64)
    values = (units * steps[places] + offsets[places]).detach().requires_grad_()
    factors = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    found = fake_quantise(values, steps, offsets, places, INTEGERS, factors)
    grad = torch.arange(1.0, 10.0, dtype=torch.float64).view(3, 3)
    found.backward(grad)
    return found.detach(), values.grad, steps.grad, offsets.grad


@pytest.mark.parametrize("width", [1, 3])
def test_the_gradients_are_those_of_the_papers(width):
    found, to_values, to_steps, to_offsets = gradients(width)
    step, offset, factor = [0.125, 0.25], [0.5, -0.25], [0.5, 2.0]
    rounded = {0.3: 0, -1.7: -2, 2.6: 3, 0.5: 0, 1.5: 2}
    expected_steps, expected_offsets = [0.0, 0.0], [[0.0] * 3, [0.0] * 3]
    for n, place in enumerate([0, 1, 0]):
        for d in range(3):
            grad, u = 3.0 * n + d + 1, UNITS[n][d]
            inside = -4 < u < 3
            q = rounded[u] if inside else max(-4, min(3, u))
            assert float(found[n, d]) == pytest.approx(q * step[place] + offset[place])
            assert float(to_values[n, d]) == (grad if inside else 0)
            expected_steps[place] += factor[place] * grad * (q - u if inside else q)
            expected_offsets[place][d] += 0 if inside else factor[place] * grad
    assert to_steps.view(-1).tolist() == pytest.approx(expected_steps)
    if width == 1:
        expected_offsets = [[sum(row)] for row in expected_offsets]
    assert to_offsets.tolist() == [pytest.approx(row) for row in expected_offsets]


def test_without_an_offset_it_is_symmetric_about_zero():
    steps, places = torch.tensor([[0.5]]), torch.zeros(1, dtype=torch.int64)
    values = torch.tensor([[0.7, -0.7, 0.2]])
    found = fake_quantise(values, steps, None, places, INTEGERS, torch.ones(1, 1))
    assert found.tolist() == [[0.5, -0.5, 0.0]]


def test_what_passes_through_keeps_its_gradient():
    values, others = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2)
    found = pass_through(values, others)
    assert torch.equal(found, others)
    found.backward(grad := torch.randn(3, 2))
    assert torch.equal(values.grad, grad)


def test_integers_of_b_bits_are_two_to_the_b():
    for bits in range(2, 17):
        integers = Integers(bits=bits)
        assert math.log2(integers.high - integers.low + 1) == bits
