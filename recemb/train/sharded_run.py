"""A method's training by several processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed as dist

from recemb.tables.automatic_sharding import choose_shardings
from recemb.tables.method import Method
from recemb.tables.planned import PlannedTables
from recemb.tables.sharded import ShardedTables, why_not_sharded
from recemb.tables.sharding import ShardingPlan, plan_sharding, read_shardings
from recemb.tables.tables import Tables
from recemb.train.context import TrainingContext

AUTO = "auto"


def run_sharded(
    method: Method, context: TrainingContext, sharding: str | Mapping[str, Any] | None
) -> Tables:
    """Return trained tables, of which this rank holds its shards: build them, then fit once.

    Args:
        method: how they are stored.
        context: trains them.
        sharding: see `sharding_of`.

    Raises:
        ValueError: before anything is allocated, if they cannot be sharded; says why.
    """
    if sharding is None:
        raise ValueError(
            "several processes were started, but sharding=none; choose "
            "sharding=auto, row_wise, table_wise, column_wise, data_parallel or a plan's file, or "
            "start one process"
        )
    planned = shardable(
        method,
        method.build(
            context.specs,
            context.id_counts,
            context.budget,
            optimizer=context.optimizer,
            seed=context.seed,
            device=torch.device("meta"),
        ),
    )
    plan = sharding_of(sharding, planned, world_size=dist.get_world_size(), device=context.device)
    for line in describe_sharding(plan, planned):
        context.log.message(line)
    tables = ShardedTables(planned, plan, device=context.device)
    context.fit(tables, stage=context.stages[0])
    return tables


def why_not_method(method: Method) -> str | None:
    """Return why a method's training cannot be shared by several processes; None if it can."""
    if type(method).run is Method.run:
        return None
    return (
        f"its training is more than one fit (its stages: {', '.join(method.stages)}) and looks at "
        "whole tables between or during them, which no process has; train it in one process"
    )


def shardable(method: Method, tables: Tables) -> PlannedTables:
    """Return what `method` built on the meta device.

    Raises:
        ValueError: if it cannot be sharded; says why.
    """
    if reason := why_not_method(method) or why_not_sharded(tables):
        raise ValueError(f"{type(method).__name__} cannot be sharded: {reason}")
    assert isinstance(tables, PlannedTables)
    return tables


def sharding_of(
    sharding: str | Mapping[str, Any],
    tables: PlannedTables,
    *,
    world_size: int,
    device: torch.device,
) -> ShardingPlan:
    """Return who holds what.

    Args:
        sharding: "auto" for TorchRec's planner; otherwise what `read_shardings` takes.
        tables: on the meta device.
        world_size: number of ranks.
        device: what they compute on.
    """
    physical = tables.plan.tables
    if sharding == AUTO:
        assert tables.optimizer is not None
        chosen = choose_shardings(physical, tables.optimizer, world_size=world_size, device=device)
    else:
        chosen = read_shardings(sharding, physical)
    return plan_sharding(physical, chosen, world_size=world_size)


def describe_sharding(sharding: ShardingPlan, tables: PlannedTables) -> list[str]:
    """Return lines for a reader: how each physical table is sharded, and the bytes of each rank."""
    sizes = sharding.rank_bytes(tables.plan.tables, tables.optimizer)
    totals = [f"rank {r:<3} {size:>16,} bytes of rows and state" for r, size in enumerate(sizes)]
    return [*sharding.describe(tables.plan.tables), *totals]
