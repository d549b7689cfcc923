from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recemb.models.interaction import PairProducts, factorisation

RTOL = ATOL = 1e-5  # float32 sums of at most a hundred products


def slow_pairs(fields: torch.Tensor) -> np.ndarray:
    values = fields.detach().double().numpy()
    pairs = list(combinations(range(values.shape[1]), 2))
    products = [[float(np.dot(row[i], row[j])) for i, j in pairs] for row in values]
    return np.array(products).reshape(len(values), len(pairs))


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 2, 1), (5, 7, 4)])
def test_factorisation_is_the_sum_over_pairs(shape) -> None:
    fields = torch.randn(shape)
    expected = slow_pairs(fields).sum(axis=1)
    np.testing.assert_allclose(factorisation(fields).numpy(), expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 2, 1), (5, 7, 4)])
def test_pair_products_are_the_inner_products_in_row_order(shape) -> None:
    fields = torch.randn(shape)
    pairs = PairProducts(num_fields=shape[1])
    assert pairs(fields).shape == (shape[0], pairs.num_pairs)
    np.testing.assert_allclose(pairs(fields).numpy(), slow_pairs(fields), rtol=RTOL, atol=ATOL)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(5)))
def test_factorisation_does_not_depend_on_the_order_of_fields(order) -> None:
    fields = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(factorisation(fields[:, order]), factorisation(fields))


def test_gradient_of_factorisation_is_the_sum_of_the_other_fields() -> None:
    fields = torch.randn(2, 3, 4, requires_grad=True)
    factorisation(fields).sum().backward()
    others = fields.detach().sum(dim=1, keepdim=True) - fields.detach()
    torch.testing.assert_close(fields.grad, others)


def test_gradient_of_pair_products_matches_finite_differences() -> None:
    fields = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PairProducts(num_fields=4), (fields,))


def test_factorisation_of_bfloat16_is_summed_in_float32() -> None:
    fields = (100 + torch.arange(64.0)).reshape(1, 64, 1).to(torch.bfloat16)
    expected = slow_pairs(fields).sum(axis=1)
    np.testing.assert_allclose(factorisation(fields).numpy(), expected, rtol=1e-5)


def test_state_has_no_index_buffer() -> None:
    assert not PairProducts(num_fields=3).state_dict()
