"""What several processes train, what they do not, and what the planner says before."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from recemb.tables.method import Method
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.sharded import why_not_sharded
from recemb.tables.spec import TableSpec
from recemb.train.sharded_run import (
    describe_sharding,
    run_sharded,
    shardable,
    sharding_of,
    why_not_method,
)

METHODS = sorted(Path("conf/embedding").glob("*.yaml"))
SPECS = [
    TableSpec(name=f"t{i}", num_embeddings=400 + i, embedding_dim=16, feature_names=(f"f{i}",))
    for i in range(3)
]
COUNTS = {f"f{i}": torch.arange(400 + i) for i in range(3)}


def build(path: Path) -> tuple[Method, object]:
    method = instantiate(OmegaConf.load(path))
    return method, method.build(
        SPECS, COUNTS, None, optimizer=TableOptimizer(), seed=0, device=torch.device("meta")
    )


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_is_sharded_or_says_why_not(path: Path) -> None:
    method = instantiate(OmegaConf.load(path))
    if reason := why_not_method(method):
        assert "one process" in reason
        return
    _, tables = build(path)
    if why_not_sharded(tables):
        with pytest.raises(ValueError, match=f"{type(method).__name__} cannot be sharded: "):
            shardable(method, tables)
        return
    planned = shardable(method, tables)
    plan = sharding_of("row_wise", planned, world_size=4, device=torch.device("cpu"))
    assert len(plan.rank_bytes(planned.plan.tables, planned.optimizer)) == 4


@pytest.mark.parametrize("name", ["full", "unified", "compo_emb", "mde", "hash", "tt_rec"])
def test_the_plan_page_has_a_line_for_each_rank(name: str) -> None:
    method, tables = build(Path("conf/embedding") / f"{name}.yaml")
    if name == "tt_rec":
        with pytest.raises(ValueError, match="TTRec cannot be sharded: ComputedTables do more"):
            shardable(method, tables)
        return
    planned = shardable(method, tables)
    plan = sharding_of("row_wise", planned, world_size=2, device=torch.device("cpu"))
    lines = describe_sharding(plan, planned)
    sizes = [int(line.split()[2].replace(",", "")) for line in lines[-2:]]
    stored = planned.storage()
    rest = sum(stored.serve.get(part, 0) for part in ("buffers", "projections"))
    assert sum(sizes) == stored.train_bytes - rest


def test_one_process_is_told_of_a_group_that_needs_a_sharding() -> None:
    with pytest.raises(ValueError, match="sharding=none; choose sharding=auto"):
        run_sharded(instantiate(OmegaConf.load(METHODS[0])), None, None)
