"""What several processes train, what they do not, and what the planner says before."""

import re
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from recemb.tables.method import Budget, Method
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.sharded import planned_parts
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables
from recemb.train.sharded_run import (
    check_shared,
    describe_sharding,
    physical_tables,
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


def build(path: Path, budget: Budget | None = None) -> tuple[Method, Tables]:
    method = instantiate(OmegaConf.load(path))
    return method, method.build(
        SPECS, COUNTS, budget, optimizer=TableOptimizer(), seed=0, device=torch.device("meta")
    )


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_is_sharded_or_says_why_not(path: Path) -> None:
    method, tables = build(path)
    if reason := why_not_method(method):
        assert "one process" in reason
        with pytest.raises(ValueError, match=f"{type(method).__name__} cannot be sharded: "):
            check_shared(method, "row_wise")
        return
    check_shared(method, "row_wise")
    if tuple(method.shared_stages()) == tuple(method.stages):
        tables = shardable(tables, owner=path.stem)
        plan = sharding_of("row_wise", tables, world_size=4, device=torch.device("cpu"))
        assert plan.world_size == 4


def pages() -> dict[str, str]:
    """Return what docs/methods.md says of each method in several processes."""
    text = Path("docs/methods.md").read_text()
    section = text.partition("## In several processes")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            names, says = line.strip("| ").split(" | ")
            found |= dict.fromkeys(re.findall("`(.*?)`", names), says)
    return found


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_the_page_of_methods_says_what_becomes_of_each(path: Path) -> None:
    method, says = instantiate(OmegaConf.load(path)), pages()[path.stem]
    shared = list(method.shared_stages())
    if not shared:
        assert says == f"no: {method.why_unshared}"
    elif shared != list(method.stages):
        assert says == f"from `{shared[0]}` on"
    else:
        assert says.partition(":")[0] == "yes"


def test_the_page_of_methods_knows_no_others() -> None:
    assert sorted(pages()) == [path.stem for path in METHODS]


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_run_of_its_own_names_what_is_shared_or_why_nothing_is(path: Path) -> None:
    method = instantiate(OmegaConf.load(path))
    is_said = type(method).why_unshared != Method.why_unshared
    assert (type(method).run is Method.run) != (
        is_said or type(method).shared_stages != Method.shared_stages
    )
    # A stage that is not shared is finished before one that is.
    first = len(method.stages) - len(method.shared_stages())
    assert list(method.shared_stages()) == list(method.stages)[first:]


@pytest.mark.parametrize("name", ["full", "unified", "compo_emb", "mde", "hash", "robe", "mgqe"])
def test_the_plan_page_has_a_line_for_each_rank(name: str) -> None:
    _, tables = build(Path("conf/embedding") / f"{name}.yaml")
    plan = sharding_of("row_wise", tables, world_size=2, device=torch.device("cpu"))
    lines = describe_sharding(plan, tables)
    sizes = [int(line.split()[2].replace(",", "")) for line in lines[-2:]]
    shared = {"buffers", "projections", "transforms"}
    stored = planned_parts(tables)[0].storage()
    rest = sum(size for part, size in stored.train.items() if part in shared)
    assert sum(sizes) == stored.train_bytes - rest


def test_parameters_that_every_rank_holds_are_on_the_plan_page() -> None:
    _, tables = build(Path("conf/embedding/robe.yaml"), Budget(ratio=0.5))
    plan = sharding_of("row_wise", tables, world_size=2, device=torch.device("cpu"))
    # All tables lie in one array of half the bytes, but for 8 bytes of hash seed.
    held = sum(spec.full_bytes for spec in SPECS) // 2 - 8
    words = [line.split()[:3] for line in describe_sharding(plan, tables)]
    assert ["every", "rank", f"{held:,}"] in words


def test_indices_that_every_rank_holds_are_on_the_plan_page() -> None:
    _, tables = build(Path("conf/embedding/min_count.yaml"), Budget(ratio=0.5))
    plan = sharding_of("row_wise", tables, world_size=2, device=torch.device("cpu"))
    held = sum(tensor.nbytes for _, tensor in tables.plan_buffers.items())
    assert held >= 4 * sum(spec.num_embeddings for spec in SPECS)
    words = [line.split()[:3] for line in describe_sharding(plan, tables)]
    assert ["every", "rank", f"{held:,}"] in words


def test_one_process_is_told_of_a_group_that_needs_a_sharding() -> None:
    with pytest.raises(ValueError, match="sharding=none; choose sharding=auto"):
        check_shared(instantiate(OmegaConf.load(METHODS[0])), None)


def test_parts_that_name_tables_alike_are_refused() -> None:
    _, tables = build(Path("conf/embedding/full.yaml"))
    twice = nn.ModuleList([tables, build(Path("conf/embedding/full.yaml"))[1]])
    with pytest.raises(ValueError, match=r"parts have physical tables \['t0', 't1', 't2'\]"):
        physical_tables(twice)
