"""Rankings: the k-th largest without sorting, shares by kind, the most that a budget holds."""

import math

import pytest
import torch

from recemb.methods.ranking import NEVER, Order, Ranking, magnitudes
from recemb.methods.sparse_rows import form_of


def values_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(40, 7, generator=generator),
        torch.randn(300, 1, generator=generator) * 1e-30,
        torch.full((5, 1), NEVER),
        torch.zeros(4),
        torch.tensor([1.5, 1.5, -1.5, 3.0e38, 1.0e-45, -1.0e-45]),
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_kth_largest_is_that_of_sorting(seed):
    values = values_of(seed)
    order = Order(values)
    expected = torch.cat([v.flatten() for v in values]).sort(descending=True).values
    assert order.size == expected.numel()
    assert [order.largest(k) for k in range(1, order.size + 1)] == expected.tolist()


def test_the_same_share_of_vectors_and_of_first_order_weights_is_kept():
    weights = {"v": torch.randn(50, 4) * 1e-3, "u": torch.randn(25, 4), "w": torch.randn(80, 1)}
    ranking = Ranking({name: magnitudes(weight) for name, weight in weights.items()})
    cut = ranking.cut(0.3)
    kept = {name: int(ranking.kept(name, cut).sum()) for name in weights}
    assert kept["v"] + kept["u"] == 90
    assert kept["w"] == 24
    largest = torch.cat([weights["v"], weights["u"]]).abs().flatten().topk(90).values.min()
    assert cut.thresholds["v"] == cut.thresholds["u"] == float(largest)


@pytest.mark.parametrize("allowed", [0, 40, 333, 1000, 2000, 10**6])
def test_the_largest_share_within_the_bytes_is_found(allowed):
    generator = torch.Generator().manual_seed(2)
    weights = {"v": torch.randn(60, 6, generator=generator), "w": torch.randn(60, 1)}
    weights["v"][torch.rand(60, 6, generator=generator) < 0.2] = 0

    def num_bytes(count):
        """Return the bytes of the sparse form when `count` of the 360 vectors' values stay."""
        total = 0
        for weight in weights.values():
            k = count * weight.numel() // 360
            scores = weight.abs().flatten()
            limit = float(scores.sort(descending=True).values[k - 1]) if k else math.inf
            total += form_of(weight * (weight.abs() >= limit)).num_bytes
        return total

    best = max(count for count in range(361) if num_bytes(count) <= allowed)
    cut = Ranking({name: magnitudes(w) for name, w in weights.items()}).within(allowed)
    assert num_bytes(round(cut.share * 360)) == num_bytes(best)
    assert sum(
        form.num_bytes
        for form in Ranking({n: magnitudes(w) for n, w in weights.items()}).forms(cut).values()
    ) == num_bytes(best)


def test_values_that_are_zero_are_never_kept():
    weight = torch.tensor([[0.0, 1.0], [0.0, -2.0]])
    ranking = Ranking({"t": magnitudes(weight)})
    assert torch.equal(ranking.kept("t", ranking.cut(1.0)), weight != 0)


def test_equal_scores_stay_or_go_together():
    ranking = Ranking({"t": torch.ones(100, 4)})
    # All of them take 1600 bytes, which is too much.
    cut = ranking.within(1000)
    assert not ranking.kept("t", cut).any()
