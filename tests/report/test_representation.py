"""Effective rank and discriminability."""

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from recemb.report.representation import discriminability, k_means, rank_me


def test_the_effective_rank_of_equal_singular_values_is_their_number() -> None:
    assert rank_me(torch.eye(12)) == pytest.approx(12, rel=1e-4)


def test_the_effective_rank_of_copies_is_one() -> None:
    assert rank_me(torch.ones(50, 8)) == pytest.approx(1, rel=1e-4)


def blobs(num: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(num) % 2
    return torch.randn(num, 3) + 50 * labels.unsqueeze(1), labels


def test_two_clouds_apart_are_two_clusters() -> None:
    points, labels = blobs()
    found = k_means(points, 2)
    assert torch.equal(found == found[0], labels == labels[0])


def test_labels_that_are_clusters_are_told_apart_wholly() -> None:
    points, labels = blobs()
    assert discriminability(points, labels, 2) == pytest.approx(1)


def test_information_is_that_of_scikit_learn() -> None:
    points, labels = torch.randn(200, 4), torch.randint(0, 2, (200,))
    expected = normalized_mutual_info_score(labels, k_means(points, 7, seed=3))
    assert discriminability(points, labels, 7, seed=3) == pytest.approx(expected, abs=1e-9)


def test_equal_vectors_are_one_cluster_that_says_nothing() -> None:
    labels = torch.randint(0, 2, (20,))
    assert discriminability(torch.ones(20, 2), labels, 3) == pytest.approx(0, abs=1e-9)


def test_more_clusters_than_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="num_clusters must be in"):
        discriminability(torch.ones(3, 2), torch.zeros(3), 4)
