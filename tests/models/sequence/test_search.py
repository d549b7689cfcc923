"""Which behaviours the search finds."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor

from recemb.kernels.search_attention import reference
from recemb.models.sequence.search import top_k, top_places

# Few distinct values, so that ties are the rule; both zeros, which are one score.
VALUES = [-torch.inf, -2.5, -1.0, -0.0, 0.0, 1e-30, 1.0, 3.0]


def brute_force(scores: Tensor, lengths: list[int], k: int) -> list[list[int]]:
    """Return the places by Python's sort: best score first, then lowest place."""
    found = []
    for row, length in zip(scores.tolist(), lengths, strict=True):
        best = sorted(range(length), key=lambda place: (-row[place], place))
        found.append(sorted(best[:k]))
    return found


@st.composite
def searches(draw: st.DrawFn) -> tuple[Tensor, list[int], int]:
    size = draw(st.integers(1, 12))
    num = draw(st.integers(1, 5))
    rows = st.lists(st.sampled_from(VALUES), min_size=size, max_size=size)
    scores = torch.tensor([draw(rows) for _ in range(num)])
    lengths = [draw(st.integers(0, size)) for _ in range(num)]
    return scores, lengths, draw(st.integers(1, 14))


def valid(lengths: list[int], size: int) -> Tensor:
    return torch.arange(size) < torch.tensor(lengths).unsqueeze(1)


@settings(deadline=None, max_examples=100)
@given(searches())
def test_the_best_are_those_of_brute_force_whatever_ties(search) -> None:
    scores, lengths, k = search
    chosen = top_k(scores, valid(lengths, scores.shape[1]), k)
    found = [row.nonzero().view(-1).tolist() for row in chosen]
    assert found == brute_force(scores, lengths, k)


@settings(deadline=None, max_examples=25)
@given(searches())
def test_the_best_are_those_of_the_kernels_reference(search) -> None:
    scores, lengths, k = search
    chosen = top_k(scores, valid(lengths, scores.shape[1]), k)
    expected = torch.zeros_like(chosen)
    for row, places in enumerate(reference.select(scores, torch.tensor(lengths), k)):
        expected[row, places[places >= 0]] = True
    assert torch.equal(chosen, expected)


def test_random_scores_of_any_sign_are_ranked_as_by_sort() -> None:
    scores = torch.randn(50, 300) * torch.logspace(-30, 30, 50).unsqueeze(1)
    chosen = top_k(scores, torch.ones(50, 300, dtype=torch.bool), 37)
    expected = torch.zeros_like(chosen).scatter_(1, scores.topk(37).indices, True)
    assert torch.equal(chosen, expected)


def test_padding_is_never_found_though_its_scores_are_best() -> None:
    scores = torch.tensor([[0.0, -5.0, 9.0, 9.0]])
    chosen = top_k(scores, torch.tensor([[True, True, False, False]]), 3)
    assert chosen.tolist() == [[True, True, False, False]]


@settings(deadline=None, max_examples=50)
@given(searches())
def test_places_of_the_best_are_ascending_and_end_in_the_last_place(search) -> None:
    scores, lengths, k = search
    size = scores.shape[1]
    places, is_found = top_places(scores, valid(lengths, size), k)
    assert places.shape == (len(lengths), min(k, size))
    for row, found, best in zip(places, is_found, brute_force(scores, lengths, k), strict=True):
        assert found.tolist() == [True] * len(best) + [False] * (len(row) - len(best))
        assert row.tolist() == best + [size - 1] * (len(row) - len(best))


def test_no_gradient_goes_through_the_selection() -> None:
    scores = torch.randn(2, 5, requires_grad=True)
    assert not top_k(scores, torch.ones(2, 5, dtype=torch.bool), 2).requires_grad
