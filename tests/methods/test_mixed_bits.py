"""Bits within a budget: even ones, and those that gates chose."""

import pytest
import torch

from recemb.methods.mixed_bits import even_layout, learned_layout
from recemb.tables.spec import TableSpec

BITS = (0, 1, 2, 4)
SPECS = [
    TableSpec(name="a", num_embeddings=100, embedding_dim=8, feature_names=("f0", "f1")),
    TableSpec(name="b", num_embeddings=28, embedding_dim=8, feature_names=("f2",)),
    TableSpec(name="w", num_embeddings=100, embedding_dim=1, feature_names=("f0",)),
]
STATS = {
    "f0": torch.arange(100),
    "f1": torch.arange(100),
    "f2": torch.arange(28) + 1000,
}
# Nibbles, two starts, four steps, eight offsets; first-order weights and their step.
FIXED = 64 + 8 + 16 + 32 + 104


@pytest.mark.parametrize(
    ("allowed", "counts"),
    [
        (None, [0, 0, 0, 128]),
        (FIXED + 128 * 4, [0, 0, 0, 128]),
        # Of 128 rows of two bytes each, some have four.
        (FIXED + 128 * 2 + 11, [0, 0, 123, 5]),
        (FIXED + 128 * 1, [0, 128, 0, 0]),
        (FIXED + 3, [125, 3, 0, 0]),
        (FIXED, [128, 0, 0, 0]),
        (10, [128, 0, 0, 0]),
    ],
)
def test_even_bits_fill_the_bytes(allowed, counts):
    layout = even_layout(SPECS, STATS, BITS, allowed)
    (form,) = layout.mixed.values()
    assert list(form.counts) == counts
    assert layout.num_bytes == FIXED + counts[1] + 2 * counts[2] + 4 * counts[3]


def test_what_is_left_over_goes_to_the_most_frequent_ids():
    layout = even_layout(SPECS, STATS, BITS, FIXED + 128 + 30)
    # All of table b, and the last two of table a.
    assert bool((layout.classes["b"] == 2).all())
    assert (layout.classes["a"] == 2).nonzero().view(-1).tolist() == [98, 99]


def test_without_counts_first_ids_come_first_and_bytes_are_the_same():
    allowed = FIXED + 128 + 30
    layout = even_layout(SPECS, {}, BITS, allowed)
    assert (layout.classes["a"] == 2).nonzero().view(-1).tolist() == list(range(30))
    assert layout.num_bytes == even_layout(SPECS, STATS, BITS, allowed).num_bytes


# Three groups of 40, 60 and 28 ids, the most frequent first.
GROUPS = {
    "a": torch.tensor([0] * 40 + [1] * 60, dtype=torch.uint8),
    "b": torch.full((28,), 2, dtype=torch.uint8),
}


def learned(probabilities, allowed=None):
    (name,) = even_layout(SPECS, STATS, BITS, None).mixed
    layout = learned_layout(
        SPECS,
        BITS,
        groups=GROUPS,
        probabilities={name: torch.tensor(probabilities)},
        allowed_bytes=allowed,
    )
    chosen = [
        int(layout.classes["a"][0]),
        int(layout.classes["a"][-1]),
        int(layout.classes["b"][0]),
    ]
    return [BITS[c] for c in chosen], layout.num_bytes


def test_without_a_budget_bits_are_the_largest_that_are_probable_enough():
    # 1 / (2 * 4) = 0.125
    found = learned([[0.1, 0.1, 0.675, 0.125], [0.2, 0.7, 0.1, 0.0], [0.9, 0.1, 0.0, 0.0]])
    assert found == ([4, 1, 0], FIXED + 40 * 4 + 60)


GATES = [[0.0, 0.1, 0.5, 0.4], [0.1, 0.2, 0.4, 0.3], [0.3, 0.45, 0.25, 0.0]]


@pytest.mark.parametrize(
    ("allowed", "bits"),
    [
        (FIXED + 160 + 240 + 56, [4, 4, 2]),
        # The least probable goes first: the 2 of 0.25, then the 4 of 0.3, then that of 0.4.
        (FIXED + 160 + 240 + 55, [4, 4, 1]),
        (FIXED + 160 + 240 + 27, [4, 2, 1]),
        (FIXED + 160 + 120 + 27, [2, 2, 1]),
        # All have their most probable number: of those of 2 the rarest is lowered.
        (FIXED + 80 + 120 + 27, [2, 1, 1]),
        (FIXED + 80 + 60 + 27, [1, 1, 1]),
        (FIXED + 40 + 60 + 27, [1, 1, 0]),
        (FIXED, [0, 0, 0]),
    ],
)
def test_a_budget_lowers_what_is_least_probable_and_then_what_is_rarest(allowed, bits):
    found, num_bytes = learned(GATES, allowed)
    assert found == bits
    assert num_bytes <= allowed


def test_of_groups_that_are_equally_probable_the_rarest_are_lowered():
    even = [[0.0, 0.0, 0.5, 0.5]] * 3
    assert learned(even, FIXED + 400)[0] == [4, 2, 2]
    assert learned(even, FIXED + 335)[0] == [2, 2, 2]


def test_of_groups_that_lose_a_choice_together_the_rarest_lose_it_first():
    same = [[0.0, 0.5, 0.1, 0.4]] * 3
    assert learned(same, FIXED + 160 + 240 + 28)[0] == [4, 4, 1]
    assert learned(same, FIXED + 160 + 60 + 28)[0] == [4, 1, 1]


def test_a_budget_below_rows_without_bits_gets_those():
    assert learned(GATES, 10) == ([0, 0, 0], FIXED)
