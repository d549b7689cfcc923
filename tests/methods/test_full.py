"""The method that compresses nothing."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from recemb.methods.full import Full
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

SPECS = [
    TableSpec(name="a", num_embeddings=10, embedding_dim=8, feature_names=("f",)),
    TableSpec(name="b", num_embeddings=20, embedding_dim=1, feature_names=("f",)),
]
FULL_BYTES = 4 * (10 * 8 + 20 * 1)


def build(method):
    return method.build(
        SPECS, {}, None, optimizer=TableOptimizer(), seed=1, device=torch.device("cpu")
    )


def test_the_plan_is_the_full_size():
    plan = Full().plan(SPECS, {}, None)
    assert plan.is_feasible
    assert plan.ratio == 1
    assert plan.storage.serve_bytes == FULL_BYTES


def test_the_plan_counts_what_build_makes():
    assert Full().plan(SPECS, {}, None).storage.serve == build(Full()).storage().serve


@pytest.mark.parametrize(("ratio", "is_feasible"), [(1.0, True), (0.99, False)])
def test_only_the_full_budget_is_feasible(ratio, is_feasible):
    plan = Full().plan(SPECS, {}, Budget(ratio=ratio))
    assert plan.is_feasible is is_feasible
    assert plan.storage.serve_bytes == FULL_BYTES


def test_the_arguments_reach_the_tables():
    tables = build(Full(backend="torch", init_std=0.0, bounds="clamp"))
    assert tables.backend == "torch"
    assert not tables.rows("f@a", torch.arange(10)).any()
    assert tables.storage().full_bytes == FULL_BYTES


def test_the_yaml_builds_the_default():
    method = instantiate(OmegaConf.load(Path(__file__).parents[2] / "conf/embedding/full.yaml"))
    assert vars(method) == vars(Full())
