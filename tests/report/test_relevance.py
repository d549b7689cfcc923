"""NDCG of attention scores."""

import pytest
import torch
from sklearn.metrics import ndcg_score

from recemb.report.relevance import retrieval_ndcg


def test_ndcg_is_that_of_scikit_learn() -> None:
    scores, relevance = torch.randn(20, 15).double(), torch.rand(20, 15).double()
    everywhere = torch.ones(20, 15, dtype=torch.bool)
    for k in (1, 5, 40):
        found = retrieval_ndcg(scores, relevance, everywhere, k).mean()
        expected = ndcg_score(relevance.numpy(), scores.numpy(), k=min(k, 15))
        torch.testing.assert_close(float(found), float(expected))


def test_padding_counts_as_nothing() -> None:
    scores = torch.tensor([[1.0, 2.0, 9.0]])
    relevance = torch.tensor([[1.0, 2.0, 9.0]])
    is_valid = torch.tensor([[True, True, False]])
    assert retrieval_ndcg(scores, relevance, is_valid, 3).item() == 1


def test_the_ideal_may_be_that_of_more_ranks() -> None:
    scores = torch.tensor([[3.0, 2.0]])
    relevance = torch.tensor([[1.0, 1.0]])
    everywhere = torch.ones(1, 2, dtype=torch.bool)
    found = retrieval_ndcg(scores, relevance, everywhere, 1, ideal_k=2).item()
    # One gain of 1 / log2(2), of an ideal with 1 / log2(3) more.
    assert found == pytest.approx(1 / (1 + 1 / 1.5849625007211563))


def test_nothing_relevant_is_not_a_number() -> None:
    zeros = torch.zeros(1, 3)
    assert retrieval_ndcg(zeros, zeros, torch.ones(1, 3, dtype=torch.bool), 2).isnan().all()
