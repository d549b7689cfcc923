"""Collisions: counted by hand, and as uniform hashing makes one expect."""

import pytest
import torch

from recemb.ids.hashing import hash_seed
from recemb.report.collisions import lookup_collisions, vector_collisions
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.program import Digit, Hash, Offset, Remap


def plan_of(num_rows, features, *, buffers=None):
    """Return a plan of one table; features are (name, ids, programs)."""
    outputs = tuple(
        Output(
            key=name,
            feature=name,
            owner=name,
            num_ids=num_ids,
            embedding_dim=4 * len(programs),
            pooling="sum",
            lookups=tuple(VirtualLookup(table="t", program=p) for p in programs),
        )
        for name, num_ids, programs in features
    )
    table = PhysicalTable(name="t", num_rows=num_rows, width=4)
    return LookupPlan(tables=(table,), outputs=outputs, buffers=buffers or {})


def test_remainders_collide_within_a_feature():
    plan = plan_of(3, [("a", 9, [(Digit(modulus=3),)])])
    (found,) = lookup_collisions(plan, buffers={})
    assert (found.intra, found.inter, found.own_row) == (2.0, 0.0, 0.0)
    assert found.expected_intra is None


def test_features_that_share_rows_collide_between_each_other():
    # Ids 0 to 3 of a and 0 to 1 of b, whose rows are 2 and 3.
    plan = plan_of(4, [("a", 4, [()]), ("b", 2, [(Offset(first=2),)])])
    a, b = lookup_collisions(plan, buffers={})
    assert (a.intra, a.inter, a.own_row) == (0.0, 0.5, 0.5)
    assert (b.intra, b.inter, b.own_row) == (0.0, 1.0, 0.0)


def test_only_the_ids_asked_for_are_counted():
    plan = plan_of(3, [("a", 9, [(Digit(modulus=3),)])])
    (found,) = lookup_collisions(plan, buffers={}, ids={"a": torch.tensor([0, 1, 3, 3])})
    assert found.num_ids == 3
    assert found.intra == pytest.approx(2 / 3)


def test_absent_rows_collide_with_nothing():
    buffers = {"map": torch.tensor([0, -1, -1, 0])}
    plan = plan_of(1, [("a", 4, [(Remap(buffer="map"),)])], buffers={"map": 1})
    (found,) = lookup_collisions(plan, buffers=buffers)
    assert found.intra == 1.0


def hashed(name, j, num_rows):
    return (Hash(seed=hash_seed(0, name, j), num_rows=num_rows),)


def test_hashing_meets_its_expectation():
    sizes = {"a": 30_000, "b": 10_000}
    plan = plan_of(8000, [(f, n, [hashed(f, 0, 8000)]) for f, n in sizes.items()])
    for found in lookup_collisions(plan, buffers={}):
        # Variances of sums of rare events: about the mean over the number of ids.
        assert found.intra == pytest.approx(found.expected_intra, rel=0.05)
        assert found.inter == pytest.approx(found.expected_inter, rel=0.05)
    assert found.expected_inter == 30_000 / 8000


def test_two_lookups_merge_few_vectors():
    one = plan_of(1000, [("a", 5000, [hashed("a", 0, 1000)])])
    two = plan_of(1000, [("a", 5000, [hashed("a", 0, 1000), hashed("a", 1, 1000)])])
    (single,) = vector_collisions(one, buffers={})
    (double,) = vector_collisions(two, buffers={})
    assert single.num_vectors <= 1000
    # 5000 ids in a million pairs of rows: 5000^2 / 2 / 10^6 = 12.5 pairs collide.
    assert 5000 - double.num_vectors < 40
    assert double.merged < 0.02


def test_quotient_and_remainder_merge_nothing():
    plan = plan_of(10, [("a", 25, [(Digit(modulus=5),), (Digit(divisor=5), Offset(first=5))])])
    (found,) = vector_collisions(plan, buffers={})
    assert (found.num_vectors, found.merged) == (25, 0.0)


def test_outputs_of_any_int64_need_their_ids():
    plan = plan_of(1000, [("a", None, [hashed("a", 0, 1000)])])
    with pytest.raises(ValueError, match=r"pass those to count as ids\['a'\]"):
        lookup_collisions(plan, buffers={})
