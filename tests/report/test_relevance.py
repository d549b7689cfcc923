"""NDCG of attention scores, and the mutual information that it is held against."""

import math

import pytest
import torch
from sklearn.metrics import mutual_info_score, ndcg_score

from recemb.report.relevance import CategoryBatch, MutualInformation, retrieval_ndcg


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


def truth(history: list[list[int]], target: list[int], label: list[int], **options):
    batch = CategoryBatch(
        history=torch.tensor(history),
        lengths=torch.full((len(history),), len(history[0])),
        target=torch.tensor(target),
        label=torch.tensor(label, dtype=torch.float32),
    )
    settings = {"num_categories": 5, "max_history": 3, "min_rows": 2, **options}
    return MutualInformation.of(lambda: [batch], **settings), batch


def test_a_behaviour_that_decides_the_label_tells_one_bit() -> None:
    # The most recent behaviour is of category 3 for positives alone; the older one tells nothing.
    known, batch = truth([[1, 3], [2, 4], [1, 4], [2, 3]], [0] * 4, [1, 0, 0, 1])
    found = known.relevance(batch)
    torch.testing.assert_close(found[:, 1], torch.ones(4), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[:, 0], torch.zeros(4), rtol=0, atol=1e-3)


def test_mutual_information_is_that_of_its_definition() -> None:
    label = torch.randint(0, 2, (200,), generator=torch.Generator().manual_seed(0))
    history = torch.randint(0, 5, (200, 2), generator=torch.Generator().manual_seed(1))
    known, batch = truth(history.tolist(), [0] * 200, label.tolist())
    found = known.relevance(batch)
    for example in range(10):
        is_there = history[:, 0] == history[example, 0]
        expected = mutual_info_score(is_there.numpy(), label.numpy()) / math.log(2)
        assert float(found[example, 0]) == pytest.approx(expected, abs=1e-5)


def test_places_count_from_the_most_recent_behaviour() -> None:
    history = torch.tensor([[3, 0, 0], [1, 3, 0], [4, 0, 0], [1, 4, 0]])
    batch = CategoryBatch(
        history, torch.tensor([1, 2, 1, 2]), torch.zeros(4).long(), torch.tensor([1.0, 1, 0, 0])
    )
    known = MutualInformation.of(lambda: [batch], num_categories=5, max_history=3, min_rows=1)
    found = known.relevance(batch)
    assert float(found[0, 0]) == float(found[1, 1]) > 0.99
    assert found[0, 1:].tolist() == [0, 0]


def test_rare_targets_have_no_relevance() -> None:
    known, batch = truth([[1, 3], [2, 4], [1, 4]], [0, 0, 1], [1, 0, 1])
    assert known.targets.tolist() == [0]
    assert known.relevance(batch)[2].tolist() == [0, 0]
    nothing, batch = truth([[1, 3]], [0], [1], min_rows=9)
    assert nothing.relevance(batch).tolist() == [[0, 0]]
    assert nothing.is_reliable(batch).tolist() == [False]


def test_every_target_with_enough_rows_is_known_and_the_others_are_counted() -> None:
    targets = [*range(30), *range(30), 30]
    known, _ = truth([[1, 3]] * 61, targets, [1, 0] * 30 + [1], num_categories=40)
    assert known.targets.tolist() == list(range(30))
    assert known.num_categories == 31


def test_the_most_frequent_targets_alone_are_known_if_that_is_asked() -> None:
    known, _ = truth([[1, 3]] * 5, [2, 2, 2, 0, 0], [1, 0, 1, 0, 1], max_targets=1)
    assert known.targets.tolist() == [2]
    assert known.num_categories == 2


def test_counts_beyond_the_memory_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"2 target categories.*at most 1 are left, or set max_t"):
        truth([[1, 3]] * 4, [0, 0, 1, 1], [1, 0, 1, 0], max_bytes=16 * 5 * 4)


def test_an_example_with_many_rare_behaviours_is_not_reliable() -> None:
    known, batch = truth([[1, 3], [2, 3], [1, 3]], [0] * 3, [1, 0, 1])
    found = known.is_reliable(batch, min_joint=2, max_rare=0)
    assert found.tolist() == [True, False, True]
