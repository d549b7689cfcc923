"""Budgets, plans, and the default recipe."""

from types import MappingProxyType

import pytest
import torch

from recemb.methods.full import Full
from recemb.tables.method import Budget, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec
from recemb.tables.storage import Storage

SPECS = [TableSpec(name="t", num_embeddings=10, embedding_dim=5, feature_names=("f",))]
STORAGE = Storage(full_bytes=200, serve={"weights": 50}, train={"weights": 50, "state": 100})


def test_a_ratio_is_of_the_full_bytes():
    assert Budget(ratio=0.1).allowed_bytes(SPECS) == 20


def test_bytes_are_taken_as_they_are():
    assert Budget(num_bytes=77).allowed_bytes(SPECS) == 77


@pytest.mark.parametrize(("of", "used"), [("serve", 50), ("train", 150)])
def test_a_budget_counts_serving_or_training(of, used):
    assert Budget(ratio=1, of=of).used_bytes(STORAGE) == used


@pytest.mark.parametrize("options", [{}, {"ratio": 0.1, "num_bytes": 5}])
def test_a_budget_is_exactly_one_number(options):
    with pytest.raises(ValueError, match="exactly one of ratio and num_bytes"):
        Budget(**options)


@pytest.mark.parametrize("options", [{"ratio": 0}, {"ratio": float("nan")}, {"num_bytes": -1}])
def test_a_budget_is_positive(options):
    with pytest.raises(ValueError, match="must be positive"):
        Budget(**options)


def test_a_plan_realises_a_ratio_as_its_budget_counts():
    make = lambda budget: Plan(storage=STORAGE, budget=budget, is_feasible=True)  # noqa: E731
    assert make(None).ratio == 0.25
    assert make(Budget(ratio=1, of="train")).ratio == 0.75


def test_the_default_recipe_builds_and_fits_once():
    class Trainer:
        specs = SPECS
        optimizer = TableOptimizer(kind="sgd")
        seed = 3
        device = torch.device("cpu")
        budget = None
        id_counts = MappingProxyType({})
        fitted = ()

        def shared(self, build):
            return build(device=self.device)

        def fit(self, tables, *, stage):
            self.fitted = (*self.fitted, tables)

    trainer = Trainer()
    tables = Full().run(trainer)
    assert trainer.fitted == (tables,)
    assert tables.optimizer == trainer.optimizer
