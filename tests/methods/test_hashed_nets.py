"""HashedNets: that it is ROBE with chunks of one value."""

import pytest
import torch

from recemb.ids.hashing import hash_rows, hash_seed
from recemb.methods.hashed_nets import HashedNets
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec

SPECS = [
    TableSpec(name=n, num_embeddings=3000, embedding_dim=4, feature_names=(f,))
    for n, f in (("a", "f"), ("b", "g"))
]


def build(method):
    device = torch.device("cpu")
    return method.build(SPECS, {}, Budget(ratio=0.1), optimizer=None, seed=0, device=device)


def test_every_element_is_hashed_on_its_own():
    tables = build(HashedNets(is_signed=False))
    values = tables.sources["a"].values.detach()
    rows = tables.rows("f", torch.arange(100)).detach()
    for d in range(4):
        at = hash_rows(torch.arange(100).numpy(), hash_seed(0, "a", d), values.numel())
        assert torch.equal(rows[:, d], values[torch.from_numpy(at)])


def test_each_table_has_an_array_of_its_own():
    assert list(build(HashedNets()).sources) == ["a", "b"]
    assert list(build(HashedNets(scope="multiplexed")).sources) == ["shared"]


def test_rows_have_both_signs_of_one_value():
    tables = build(HashedNets())
    source = tables.sources["a"]
    source.values.detach().fill_(2.0)
    assert set(tables.rows("f", torch.arange(100)).detach().unique().tolist()) == {-2.0, 2.0}


def test_an_unknown_scope_is_refused():
    with pytest.raises(ValueError, match="HashedNets: scope must be multiplexed or per_feature"):
        HashedNets(scope="all")
