"""How many rows of sharded tables each rank is asked for, expected before training.

A batch of B examples is W parts, and each part asks for each of its distinct rows once. A row that
an example reads c times on average is in a part with a chance of 1 - exp(-c B / W) (Poisson), so

    E[rows asked of a rank] = W * sum over its rows (1 - exp(-c_row B / W)).

Shapes: `n` ids of a feature, `R` rows of a physical table.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recemb.tables.lookup_plan import Output
from recemb.tables.planned import PlannedTables
from recemb.tables.program import run_program
from recemb.tables.sharding import ShardingPlan


def rank_rows(
    tables: Sequence[PlannedTables],
    sharding: ShardingPlan,
    counts: Mapping[str, Tensor],
    *,
    num_examples: int,
    batch_size: int,
) -> list[float] | None:
    """Return how many rows a batch asks of each rank on average; None if that is not known.

    It is not for ids that nobody counted, nor for histories, whose ids are counted once for a user
    and not for each of the user's examples.

    Rows of data-parallel tables are asked of nobody; a shard of some columns is a part of a row.

    Args:
        tables: on any device; their buffers are read.
        sharding: who holds what of their physical tables.
        counts: how often the training split has each id (n,), by feature.
        num_examples: of the training split.
        batch_size: of all ranks together.
    """
    outputs = [output for part in tables for output in part.plan.outputs]
    if any(o.num_ids is None or o.pooling == "none" or o.feature not in counts for o in outputs):
        return None
    found = [0.0] * sharding.world_size
    part_size = batch_size / sharding.world_size
    for part in tables:
        for table in part.plan.tables:
            per_example = _row_counts(part, table.name, counts) / num_examples
            chances = -torch.expm1(-part_size * per_example)
            for shard in sharding.of(table.name):
                if sharding.kinds[table.name] != "data_parallel":
                    its = chances[shard.first_row : shard.first_row + shard.num_rows].sum()
                    share = sharding.world_size * shard.width / table.width
                    found[shard.rank] += share * float(its)
    return found


def _row_counts(tables: PlannedTables, table: str, counts: Mapping[str, Tensor]) -> Tensor:
    """Return how often the training split reads each row (R,) of a physical table, float64."""
    total = torch.zeros(tables.plan.table(table).num_rows, dtype=torch.float64)
    seen = set()
    for output in tables.plan.outputs:
        for lookup in output.all_lookups:
            # Outputs of one feature that agree in everything read the same row once.
            its = (output.feature, output.num_ids, lookup.program)
            if lookup.table == table and its not in seen:
                seen.add(its)
                rows = run_program(lookup.program, _ids(output), _buffers(tables))
                is_there = rows >= 0
                total += torch.bincount(
                    rows[is_there],
                    weights=counts[output.feature][is_there].double(),
                    minlength=total.numel(),
                )
    return total


def _ids(output: Output) -> Tensor:
    assert output.num_ids is not None
    return torch.arange(output.num_ids)


def _buffers(tables: PlannedTables) -> Mapping[str, Tensor]:
    """Return the buffers, those of tables on the meta device as they will be."""
    if tables.ingredients is not None:
        return tables.ingredients.buffers
    return dict(tables.plan_buffers.items())
