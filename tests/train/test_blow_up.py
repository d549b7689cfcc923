import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables import TableOptimizer, Tables, TableSpec, full_tables
from recemb.train.blow_up import feature_gradients, worst_features

USER = TableSpec(name="user", num_embeddings=5, embedding_dim=4, feature_names=("user",))
ITEM = TableSpec(name="item", num_embeddings=7, embedding_dim=2, feature_names=("item",))
SEEN = TableSpec(
    name="seen", num_embeddings=7, embedding_dim=2, feature_names=("seen",), pooling="none"
)
IDS = KeyedJaggedTensor.from_lengths_sync(
    ["user", "item", "seen"], torch.tensor([1, 2, 3, 4, 5, 6]), torch.ones(6, dtype=torch.long)
)


@pytest.fixture
def tables() -> Tables:
    return full_tables([USER, ITEM, SEEN], optimizer=TableOptimizer())


def test_norms_are_those_of_gradients_and_vectors(tables: Tables) -> None:
    def loss(its: Tables) -> Tensor:
        seen = its.sequences(IDS)["seen"].values()
        pooled = its(IDS)
        return pooled["user"].sum() + 3 * pooled["item"].sum() + 9 * seen.sum()

    found = {its.key: its for its in feature_gradients(tables, loss)}
    # Two examples each, of 4, 2 and 2 values.
    expected = {"user": (8 * 1) ** 0.5, "item": (4 * 3**2) ** 0.5, "seen": (4 * 9**2) ** 0.5}
    assert {key: its.gradient_norm for key, its in found.items()} == pytest.approx(expected)
    assert found["item"].vector_norm == pytest.approx(float(tables(IDS)["item"].detach().norm()))
    assert worst_features(tables, loss).startswith(
        "feature 'seen' (gradient of norm 18, vectors of"
    )


def test_a_gradient_that_is_not_finite_is_the_largest(tables: Tables) -> None:
    text = worst_features(
        tables, lambda its: 1e30 * its(IDS)["user"].sum() + (its(IDS)["item"] * 0).sqrt().sum()
    )
    assert text.startswith("feature 'item' (gradient not finite, vectors of norm ")
    assert ") has the largest gradient" in text


def test_of_gradients_that_are_not_finite_the_one_with_the_largest_vectors(tables: Tables) -> None:
    tables.table("item").detach().fill_(1e25)
    text = worst_features(tables, lambda its: (its(IDS).values() * float("inf")).sum())
    assert text == (
        "feature 'item' (gradient not finite, vectors of norm 2e+25) has the largest gradient"
    )


def test_larger_vectors_of_another_feature_are_named_too(tables: Tables) -> None:
    tables.table("user").detach().fill_(float("nan"))
    text = worst_features(tables, lambda its: 5 * its(IDS)["item"].sum() + its(IDS)["user"].sum())
    assert text.startswith("feature 'item' (gradient of norm 10, ")
    assert text.endswith(
        "has the largest gradient, feature 'user' (gradient of norm 2.83, vectors not finite) the "
        "largest vectors"
    )


def test_nothing_is_updated(tables: Tables) -> None:
    before = {name: tensor.clone() for name, tensor in tables.state_dict().items()}
    worst_features(tables, lambda its: its(IDS).values().sum())
    assert all(torch.equal(before[n], tensor) for n, tensor in tables.state_dict().items())


def test_a_loss_without_vectors_has_no_such_feature(tables: Tables) -> None:
    assert worst_features(tables, lambda its: torch.tensor(float("nan"))) == ""
