"""Blocks that are alike: distances, the order of merging, numbers and tolerances."""

import pytest
import torch

from recemb.methods.deduplication import Similarity, merge_alike, merge_closest


def clusters(num, each, *, noise, seed=0):
    """Return `num` times `each` blocks (., 40) around points that are far apart."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(num, 40, generator=generator).repeat_interleave(each, dim=0)
    return points + noise * torch.randn(num * each, 40, generator=generator)


def test_the_distance_is_what_the_share_of_elements_differs_by_at_most():
    blocks = torch.stack([torch.zeros(10), torch.arange(10.0), -torch.arange(10.0)])
    found = Similarity(share=0.7).distances(blocks, torch.tensor([0, 1]), torch.tensor([1, 2]))
    # Seven of ten elements differ by 6 at most, and by twice that.
    assert found.tolist() == [6.0, 12.0]


def test_a_tolerance_merges_what_is_alike_and_nothing_else():
    blocks = clusters(12, 5, noise=1e-3)
    owner = merge_alike(blocks, Similarity(), tolerance=0.01)
    assert torch.equal(owner[owner], owner)
    cluster = torch.arange(12).repeat_interleave(5)
    assert torch.equal(cluster[owner], cluster)
    assert owner.unique().numel() == 12


def test_every_block_is_within_the_tolerance_of_the_one_that_stands_for_it():
    blocks = clusters(30, 4, noise=0.02)
    owner = merge_alike(blocks, Similarity(), tolerance=0.03)
    assert 30 <= owner.unique().numel() < 120
    merged = (owner != torch.arange(120)).nonzero().view(-1)
    assert merged.numel()
    assert float(Similarity().distances(blocks, merged, owner[merged]).max()) <= 0.03


@pytest.mark.parametrize("at_most", [1, 7, 12, 33, 59, 60])
def test_a_number_is_reached_exactly(at_most):
    owner = merge_closest(clusters(12, 5, noise=0.1), Similarity(), at_most=at_most)
    assert owner.unique().numel() == at_most
    assert torch.equal(owner[owner], owner)


def test_the_closest_are_merged_first():
    blocks = torch.cat([clusters(6, 2, noise=1e-3), clusters(6, 2, noise=0.05, seed=1)])
    owner = merge_closest(blocks, Similarity(), at_most=18)
    merged = (owner != torch.arange(24)).nonzero().view(-1)
    assert int(merged.max()) < 12


def test_equal_blocks_are_one():
    owner = merge_alike(torch.ones(9, 4), Similarity(), tolerance=0.0)
    assert owner.unique().numel() == 1


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.1}, {"candidates": 0}], ids=str)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="similarity: "):
        Similarity(**wrong)
