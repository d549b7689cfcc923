"""A sharding chosen by TorchRec's planner."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

import torch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.proposers import GreedyProposer
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from recemb.tables.formula import STATE_PARTS
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.physical_table import PhysicalTable
from recemb.tables.sharding import TableSharding

_WORSE_PROPOSALS = 10
"""In a row, after which the search ends."""

_IN_MEMORY = ["dense", "fused"]
"""Rows lie in the memory of the device; TorchRec's other kernels would spread them further."""

_RESERVED_SHARE = 0.15
"""Of a device's memory, for everything but tables; TorchRec's own default."""


def choose_shardings(
    tables: Sequence[PhysicalTable],
    optimizer: TableOptimizer,
    *,
    world_size: int,
    device: torch.device,
) -> dict[str, TableSharding]:
    """Return how each table is sharded: as TorchRec's planner would, with one exception.

    The planner offers no row-wise sharding on CPUs. So there tables that are larger than a rank's
    equal share of all bytes are row-wise, and the planner places the others.

    Args:
        tables: the physical tables.
        optimizer: how rows are updated; those with state by row leave columns together.
        world_size: number of ranks.
        device: what ranks compute on.

    Raises:
        ValueError: if the planner finds no plan that fits the ranks' memory.
    """
    share = sum(t.num_rows * t.width for t in tables) / world_size
    is_cuda = device.type == "cuda"
    large = [t for t in tables if not is_cuda and t.num_rows * t.width > share]
    found = {t.name: TableSharding(kind="row_wise") for t in large}
    others = [t for t in tables if t.name not in found]
    if others:
        found |= _planned(others, optimizer, world_size=world_size, is_cuda=is_cuda)
    return {table.name: found[table.name] for table in tables}


def _planned(
    tables: Sequence[PhysicalTable],
    optimizer: TableOptimizer,
    *,
    world_size: int,
    is_cuda: bool,
) -> dict[str, TableSharding]:
    kinds = ["data_parallel", "table_wise", "row_wise"]
    if not any(is_rowwise for _, is_rowwise in STATE_PARTS[optimizer.kind]):
        kinds.append("column_wise")
    # Names of modules have no dots, those of tables may.
    names = [f"table_{index}" for index in range(len(tables))]
    bags = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=name,
                num_embeddings=table.num_rows,
                embedding_dim=table.width,
                feature_names=[name],
            )
            for name, table in zip(names, tables, strict=True)
        ],
        device=torch.device("meta"),
    )
    with _quiet_planner():
        topology = Topology(
            world_size=world_size,
            compute_device="cuda" if is_cuda else "cpu",
            hbm_cap=_gpu_bytes() if is_cuda else None,
        )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        constraints={
            name: ParameterConstraints(sharding_types=list(kinds), compute_kernels=_IN_MEMORY)
            for name in names
        },
        # Each proposal takes some 50 ms for a hundred tables.
        proposer=GreedyProposer(threshold=_WORSE_PROPOSALS),
        storage_reservation=FixedPercentageStorageReservation(_RESERVED_SHARE),
        stats=[],
        debug=False,
    )
    try:
        with _quiet_planner():
            plan = planner.plan(bags, [EmbeddingBagCollectionSharder()])
    except PlannerError as error:
        raise ValueError(
            f"sharding=auto: TorchRec's planner finds no plan for {world_size} ranks: "
            f"{' '.join(str(error).split())[:300]}. Use more ranks, a smaller budget= or "
            "sharding=row_wise, which splits every table evenly"
        ) from error
    its = plan.plan[""]
    found = {}
    for name, table in zip(names, tables, strict=True):
        kind = its[name].sharding_type
        has_ranks = kind in ("table_wise", "column_wise")
        ranks = tuple(its[name].ranks) if has_ranks else None
        found[table.name] = TableSharding(kind=kind, ranks=ranks)
    return found


def _gpu_bytes() -> int | None:
    """Return the memory of this machine's first GPU; None, TorchRec's default of 32 GB, without."""
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


@contextlib.contextmanager
def _quiet_planner() -> Iterator[None]:
    """Within this context the planner does not log each of its proposals."""
    loggers = [logging.getLogger(name) for name in ("torchrec.distributed.planner", "")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
