"""A method's training by several processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed as dist

from recemb.tables.automatic_sharding import choose_shardings
from recemb.tables.method import Method
from recemb.tables.physical_table import PhysicalTable
from recemb.tables.sharded import planned_parts, shard_tables
from recemb.tables.sharding import ShardingPlan, plan_sharding, read_shardings
from recemb.tables.tables import Tables
from recemb.train.log import RunLog

AUTO = "auto"


def check_shared(method: Method, sharding: str | Mapping[str, Any] | None) -> None:
    """Check, before any table is allocated, that several processes can train a method.

    Args:
        method: how tables are stored.
        sharding: see `sharding_of`; None for none.

    Raises:
        ValueError: if not; says why.
    """
    if sharding is None:
        raise ValueError(
            "several processes were started, but sharding=none; choose "
            "sharding=auto, row_wise, table_wise, column_wise, data_parallel or a plan's file, or "
            "start one process"
        )
    if reason := why_not_method(method):
        raise ValueError(f"{type(method).__name__} cannot be sharded: {reason}")


def why_not_method(method: Method) -> str | None:
    """Return why a method's training cannot be shared by several processes; None if it can."""
    return None if method.shared_stages() else f"{method.why_unshared}; train it in one process"


def unfinished(method: str, what: str, stage: str) -> str:
    """Return what to say where something is missing that one process has to do first.

    Args:
        method: whose training it is.
        what: is missing.
        stage: the first that processes can share.
    """
    return (
        f"{method}: {what} is not finished, and processes can share nothing before stage "
        f"'{stage}'. Run the same command without torchrun and with stop_before={stage} first, in "
        "the same folder (paths.run=...), and then this one again"
    )


def spread(
    tables: Tables,
    sharding: str | Mapping[str, Any] | None,
    *,
    owner: str,
    device: torch.device,
    log: RunLog,
) -> Tables:
    """Return tables of which this rank holds its shards; who holds what goes to the log.

    Args:
        tables: on the meta device.
        sharding: see `sharding_of`.
        owner: the method's name.
        device: what the ranks compute on.
        log: of the run.

    Raises:
        ValueError: before anything is allocated, if they cannot be sharded; says why.
    """
    assert sharding is not None
    tables = shardable(tables, owner=owner)
    plan = sharding_of(sharding, tables, world_size=dist.get_world_size(), device=device)
    for line in describe_sharding(plan, tables):
        log.message(line)
    return shard_tables(tables, plan, device=device)


def shardable(tables: Tables, *, owner: str) -> Tables:
    """Return tables that a method built on the meta device.

    Raises:
        ValueError: if they cannot be sharded; says why.
    """
    if reason := tables.why_not_sharded():
        raise ValueError(f"{owner} cannot be sharded: {reason}")
    return tables


def physical_tables(tables: Tables) -> tuple[PhysicalTable, ...]:
    """Return the physical tables of all parts.

    Raises:
        ValueError: if two parts have one of the same name, for a plan names tables.
    """
    found = tuple(table for part in planned_parts(tables) for table in part.plan.tables)
    names = [table.name for table in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"sharding: several parts have physical tables {twice}; choose methods that name them "
            "apart (scope=table), or train in one process"
        )
    return found


def sharding_of(
    sharding: str | Mapping[str, Any],
    tables: Tables,
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
    physical = physical_tables(tables)
    if sharding != AUTO or not physical:
        chosen = read_shardings("row_wise" if sharding == AUTO else sharding, physical)
    else:
        optimizer = planned_parts(tables)[0].optimizer
        assert optimizer is not None
        chosen = choose_shardings(physical, optimizer, world_size=world_size, device=device)
    return plan_sharding(physical, chosen, world_size=world_size)


def describe_sharding(sharding: ShardingPlan, tables: Tables) -> list[str]:
    """Return lines for a reader: how each physical table is sharded, and the bytes of each rank."""
    sizes = [0] * sharding.world_size
    for part in planned_parts(tables):
        its = sharding.rank_bytes(part.plan.tables, part.optimizer)
        sizes = [size + more for size, more in zip(sizes, its, strict=True)]
    lines = sharding.describe(physical_tables(tables))
    indices = (t for part in planned_parts(tables) for _, t in part.plan_buffers.items())
    if replicated := sum(t.nbytes for t in (*tables.dense_parameters(), *indices)):
        lines.append(f"every rank {replicated:>14,} bytes of parameters and indices")
    return lines + [
        f"rank {r:<3} {size:>16,} bytes of rows and state" for r, size in enumerate(sizes)
    ]
