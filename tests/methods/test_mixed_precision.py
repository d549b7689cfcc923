"""Rows in several numbers of bits: the gates' sum and its gradients, fixed bits, first steps."""

import math

import pytest
import torch

from recemb.methods.fake_quantised import take
from recemb.methods.mixed_precision import FixedPrecision, SearchedPrecision
from recemb.tables.full import full_plan
from recemb.tables.layout import group_tables
from recemb.tables.spec import TableSpec

WIDTH, BITS = 3, (0, 1, 2, 4)
SPEC = TableSpec(name="t", num_embeddings=6, embedding_dim=WIDTH, feature_names=("f",))
GROUP = group_tables(full_plan([SPEC]))[0]
ROWS = torch.tensor([0, 3, 5, 3])
TABLES = torch.zeros(4, dtype=torch.int64)


def rounded_by_hand(value, step, offset, bits):
    """Return Q_b of one value, and whether it lies within the range."""
    if bits == 0:
        return 0.0, False
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    u = (value - offset) / step
    return max(low, min(high, round(u))) * step + offset, low < u < high


def searched():
    made = SearchedPrecision(
        GROUP,
        BITS,
        groups=torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.uint8),
        prices=torch.tensor([0.25, 1.0]),
        temperature=0.5,
    ).double()
    with torch.no_grad():
        made.log_steps.copy_(torch.tensor([1.0, 0.8, 0.4, 0.1]).log())
        made.offsets.copy_(torch.tensor([[0.02, -0.03, 0.0]]))
        made.gates.copy_(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    return made


def draw(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()


def test_gates_weigh_the_rows_in_all_numbers_of_bits():
    made, vectors, grad = searched(), draw(), draw(2).detach()
    found = made(vectors, ROWS, TABLES)
    found.backward(grad)
    steps, offsets = made.steps().detach().tolist(), made.offsets[0].detach().tolist()
    p = torch.softmax(made.gates.detach() / 0.5, dim=1)
    to_p = torch.zeros(2, 4, dtype=torch.float64)
    for n, row in enumerate(ROWS.tolist()):
        g = int(row >= 3)
        for d in range(WIDTH):
            of_bits = [
                rounded_by_hand(float(vectors.detach()[n, d]), step, offsets[d], bits)
                for step, bits in zip(steps, BITS, strict=True)
            ]
            expected = sum(float(p[g, b]) * q for b, (q, _) in enumerate(of_bits))
            assert float(found.detach()[n, d]) == pytest.approx(expected)
            inside = sum(float(p[g, b]) for b, (_, is_inside) in enumerate(of_bits) if is_inside)
            assert float(vectors.grad[n, d]) == pytest.approx(float(grad[n, d]) * inside)
            for b, (q, _) in enumerate(of_bits):
                to_p[g, b] += float(grad[n, d]) * q
    # Through the softmax, d p_b / d gate_c = p_b (1[b = c] - p_c) / tau.
    expected = p * (to_p - (p * to_p).sum(dim=1, keepdim=True)) / 0.5
    torch.testing.assert_close(made.gates.grad, expected)


def test_the_penalty_is_the_price_of_the_expected_bits():
    made = searched()
    p = torch.softmax(made.gates.detach() / 0.5, dim=1)
    expected = sum(
        price * float(p[g] @ torch.tensor(BITS).double()) for g, price in ((0, 0.25), (1, 1))
    )
    assert float(made.penalty().detach()) == pytest.approx(expected, rel=1e-6)


def test_taken_rows_give_their_gradients_to_the_table():
    table = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([4, 0, 4, 2])
    assert torch.autograd.gradcheck(lambda t: take(t, places), table)


def fixed():
    made = FixedPrecision(GROUP, BITS, classes=torch.tensor([1, 0, 3, 2, 0, 0], dtype=torch.uint8))
    with torch.no_grad():
        made.log_steps.copy_(torch.tensor([1.0, 0.8, 0.4, 0.1]).log())
        made.offsets.copy_(torch.tensor([[0.02, -0.03, 0.0]]))
    return made.double()


def test_fixed_rows_are_read_in_their_own_bits():
    made, vectors, grad = fixed(), draw(), draw(2).detach()
    found = made(vectors, ROWS, TABLES)
    found.backward(grad)
    bits, steps, offsets = (
        [1, 2, 0, 2],
        made.steps().detach().tolist(),
        made.offsets[0].detach().tolist(),
    )
    to_steps, to_offsets = [0.0] * 4, [0.0] * WIDTH
    for n, b in enumerate(bits):
        place, size = BITS.index(b), 6 * WIDTH
        factor = 1 / math.sqrt(2.0 ** (b - 1) * size)
        for d in range(WIDTH):
            value, g = float(vectors.detach()[n, d]), float(grad[n, d])
            q, is_inside = rounded_by_hand(value, steps[place], offsets[d], b)
            assert float(found.detach()[n, d]) == pytest.approx(q)
            assert float(vectors.grad[n, d]) == pytest.approx(g * is_inside)
            if b == 0:
                continue
            units = (value - offsets[d]) / steps[place]
            slope = (q - offsets[d]) / steps[place] - (units if is_inside else 0)
            to_steps[place] += factor * g * slope
            to_offsets[d] += 0 if is_inside else factor * g
    expected = [s * step for s, step in zip(to_steps, steps, strict=True)]
    assert made.log_steps.grad.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert made.offsets.grad[0].tolist() == pytest.approx(to_offsets, rel=1e-5, abs=1e-9)


def test_rows_without_bits_are_zero_and_not_trained():
    made, vectors = fixed(), draw()
    found = made(vectors, torch.tensor([1, 4, 5, 1]), TABLES)
    assert not found.any()
    found.sum().backward()
    assert not vectors.grad.any()
    assert not made.offsets.grad.any()


def test_measured_steps_are_those_of_the_rows_read():
    made = fixed()
    made.is_measuring = True
    vectors = draw().detach()
    for part in vectors.split(2):
        made(part, torch.arange(2), torch.zeros(2, dtype=torch.int64))
    made.measure()
    size = float(vectors.abs().mean())
    expected = [2 * size / math.sqrt(2.0 ** (bits - 1)) for bits in BITS]
    assert made.steps().detach().tolist() == pytest.approx(expected, rel=1e-5)
