"""Products of targets with their histories."""

import pytest
import torch

from recemb.models.sequence.attention import products


def draw(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("shape", [(3, 5, 4), (1, 5, 4), (3, 1, 4), (3, 5, 1), (0, 5, 4)])
def test_products_are_the_sums_over_widths(shape) -> None:
    history, target = draw(*shape), draw(shape[0], shape[2])
    expected = (history * target.unsqueeze(1)).sum(2)
    torch.testing.assert_close(products(history, target), expected)
    # The same bits whether or not a gradient will be asked for.
    trained = products(history.clone().requires_grad_(), target)
    assert torch.equal(trained, products(history, target))


@pytest.mark.parametrize("learned", [(True, True), (True, False), (False, True)])
def test_gradients_are_those_of_finite_differences(learned) -> None:
    history = draw(3, 5, 4).requires_grad_(learned[0])
    target = draw(3, 4).requires_grad_(learned[1])
    assert torch.autograd.gradcheck(products, (history, target))
