import math

import pytest
import torch

from recemb.models.dropout import Dropout

SIZE = 1_000_003  # not a multiple of the four values that share a number
# Four standard deviations of a binomial share over SIZE values.
SHARE_TOLERANCE = 4 * math.sqrt(0.25 / SIZE)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_the_share_of_zeros_is_p_and_the_rest_is_scaled(p: float) -> None:
    outputs = Dropout(p)(torch.ones(SIZE))
    kept = outputs[outputs != 0]
    assert (outputs == 0).double().mean().item() == pytest.approx(p, abs=SHARE_TOLERANCE)
    # p is rounded to 2**-16, so the scale is off by at most 2**-17 / (1 - p)**2.
    assert kept.unique().tolist() == [pytest.approx(1 / (1 - p), rel=2**-17 / (1 - p) + 1e-6)]


def test_neighbours_that_share_a_number_are_dropped_independently() -> None:
    dropped = (Dropout(0.5)(torch.ones(SIZE - 3)) == 0).view(-1, 4).double()
    correlation = torch.corrcoef(dropped.T) - torch.eye(4)
    assert correlation.abs().max().item() < 4 / math.sqrt(SIZE / 4)


def test_the_gradient_passes_where_the_value_did() -> None:
    inputs = torch.randn(37, 5, requires_grad=True)
    outputs = Dropout(0.3)(inputs)
    outputs.sum().backward()
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad * inputs.detach(), outputs.detach())


def test_evaluation_and_p_zero_change_nothing() -> None:
    inputs = torch.randn(8)
    assert Dropout(0.5).eval()(inputs) is inputs
    assert Dropout(0.0)(inputs) is inputs


def test_one_seed_gives_one_mask() -> None:
    torch.manual_seed(3)
    first = Dropout(0.5)(torch.ones(100))
    second = Dropout(0.5)(torch.ones(100))
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(torch.ones(100)), first)
    assert not torch.equal(first, second)


def test_bfloat16_stays_bfloat16() -> None:
    assert Dropout(0.5)(torch.ones(9, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_p_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Dropout(1.0)
