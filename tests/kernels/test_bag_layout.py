"""Bags in plain torch: what is refused, and how ids find their bag, their sum and their rows."""

import pytest
import torch

from recemb.kernels import bag_layout

VALUES = torch.arange(4)
OFFSETS = torch.tensor([0, 1, 1, 4])


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"values": torch.zeros(4)}, "values must be"),
        ({"offsets": torch.zeros(4)}, "offsets must be"),
        ({"num_features": 2}, "no multiple of num_features=2"),
        ({"weights": torch.ones(3)}, "one number per id"),
        ({"pooling": "max"}, "pooling must be one of"),
    ],
)
def test_what_does_not_make_bags_is_refused(named: dict[str, object], message: str) -> None:
    given = {"values": VALUES, "offsets": OFFSETS, "weights": None, "num_features": 1}
    with pytest.raises(ValueError, match=f"owner: .*{message}"):
        bag_layout.check_bags("owner", **(given | {"pooling": "sum"} | named))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_know_their_bag(dtype: torch.dtype) -> None:
    assert bag_layout.bag_of_lookup(VALUES, OFFSETS.to(dtype)).tolist() == [0, 2, 2, 2]
    assert bag_layout.bag_of_lookup(VALUES, None).tolist() == [0, 1, 2, 3]


def test_sums_follow_the_offsets_and_empty_bags_are_zero() -> None:
    rows = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    assert bag_layout.sum_bags(rows, OFFSETS).tolist() == [[1.0], [0.0], [14.0]]
    assert bag_layout.sum_bags(rows[:0], torch.zeros(3, dtype=torch.int32)).tolist() == [[0], [0]]


def test_mean_divides_by_the_ids_that_are_present() -> None:
    present = torch.tensor([True, True, False, True])
    bags = torch.tensor([0, 2, 2, 2])
    scale = bag_layout.lookup_scale(present, bags, 3, torch.float32, mean=True)
    assert scale.tolist() == [1.0, 0.5, 0.0, 0.5]


def test_examples_and_bags_are_inverse() -> None:
    pooled = torch.randn(6, 2)
    examples = bag_layout.to_examples(pooled, 3)
    assert torch.equal(examples[1, 2], pooled[2 * 2 + 1])
    assert torch.equal(bag_layout.to_bags(examples), pooled)
