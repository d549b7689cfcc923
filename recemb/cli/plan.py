"""`recemb plan`: what a method makes of a budget, byte by byte, before anything is allocated."""

import dataclasses
import logging
import sys

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from recemb.cli.failure import user_errors
from recemb.cli.overrides import LEAVE_NO_FILES
from recemb.cli.prepare import prepare_from
from recemb.cli.train import budget_of, model_class_of, model_options_of, sharding_request
from recemb.tables.method import Method, Plan
from recemb.tables.rank_load import rank_rows
from recemb.tables.sharded import planned_parts
from recemb.tables.sharding import ShardingPlan
from recemb.tables.tables import Tables
from recemb.train.experiment import table_specs
from recemb.train.sharded_run import (
    check_shared,
    describe_sharding,
    shardable,
    sharding_of,
)


def run(arguments: list[str]) -> int:
    """Run the verb; return the exit status: 1 if the budget cannot be kept."""
    sys.argv = ["recemb plan", *arguments, *LEAVE_NO_FILES]
    feasible: list[bool] = []

    def main(config: DictConfig) -> None:
        with user_errors("plan", traceback=config.traceback):
            plan, tables = built(config)
            print(describe(plan))
            if tables is not None:
                print("\n".join(describe_ranks(config, tables)))
        feasible.append(plan.is_feasible)

    hydra.main(config_path="pkg://recemb.conf", config_name="train", version_base="1.3")(main)()
    return 0 if all(feasible) else 1


def plan_of(config: DictConfig) -> Plan:
    """Return the plan of the configured method for the configured data and budget; see `built`."""
    return built(config)[0]


def built(config: DictConfig) -> tuple[Plan, Tables | None]:
    """Return the plan of the configured method, and what it would build, on the meta device.

    The data are prepared if they are not yet, for their number of ids decides. The storage of a
    feasible plan includes the state of the configured optimizer; for others nothing is built.
    """
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    prepared = prepare_from(config, overwrite=False)
    specs = table_specs(
        model_class_of(config),
        prepared.schema,
        embedding_dim=config.embedding_dim,
        options=model_options_of(config),
    )
    method = instantiate(config.embedding)
    if not isinstance(method, Method):
        raise ValueError(f"embedding._target_ {config.embedding._target_} is not a recemb Method")
    counts = {name: prepared.id_counts(name) for name in prepared.schema.feature_names}
    budget = budget_of(config)
    plan = method.plan(specs, counts, budget)
    if not plan.is_feasible:
        return plan, None
    tables = method.build(
        specs,
        counts,
        budget,
        optimizer=instantiate(config.optimizer.tables),
        seed=config.seed,
        device=torch.device("meta"),
    )
    return dataclasses.replace(plan, storage=tables.storage()), tables


def describe_ranks(config: DictConfig, tables: Tables) -> list[str]:
    """Return what each rank would hold, line by line; nothing without sharding.

    Raises:
        ValueError: if the tables cannot be sharded in the configured way; says why.
    """
    request, world_size = sharding_request(config), config.world_size or 1
    if request is None:
        return []
    method = instantiate(config.embedding)
    check_shared(method, request)
    first = method.shared_stages()[0]
    if alone := list(method.stages)[: list(method.stages).index(first)]:
        return [
            f"one process trains {', '.join(alone)}; what they leave is shared by all in stage "
            f"{first}, and not known before"
        ]
    settings = instantiate(config.trainer)
    # A plan for GPUs may be asked for where there is none.
    is_named = settings.device != "auto"
    device = torch.device(settings.device) if is_named else settings.resolve_device()
    tables = shardable(tables, owner=type(method).__name__)
    sharding = sharding_of(request, tables, world_size=world_size, device=device)
    return [*describe_sharding(sharding, tables), *_describe_load(config, tables, sharding)]


def _describe_load(config: DictConfig, tables: Tables, sharding: ShardingPlan) -> list[str]:
    """Return how many rows of each rank a batch reads, line by line; nothing if nobody knows."""
    prepared = prepare_from(config, overwrite=False)
    found = rank_rows(
        planned_parts(tables),
        sharding,
        {name: prepared.id_counts(name) for name in prepared.schema.feature_names},
        num_examples=prepared.num_rows("train"),
        batch_size=config.trainer.batch_size,
    )
    return [
        f"rank {r:<3} {rows:>16,.0f} rows asked of it by a batch, on average"
        for r, rows in enumerate(found or ())
    ]


def describe(plan: Plan) -> str:
    """Return the page that `recemb plan` prints."""
    storage = plan.storage
    lines = [f"full     {storage.full_bytes:>16,} bytes, all tables in float32"]
    for title, parts, total in (
        ("serving", storage.serve, storage.serve_bytes),
        ("training", storage.train, storage.train_bytes),
    ):
        lines.append(f"{title:<8} {total:>16,} bytes")
        lines += [f"  {part:<15} {num_bytes:>9,}" for part, num_bytes in parts.items()]
    words = storage.serve.get("weights", 0) / storage.full_bytes
    lines.append(f"ratio    {plan.ratio:.5f} (of weights alone, as papers count: {words:.5f})")
    for name, value in plan.parameters.items():
        lines.append(f"{name}: {_short(value)}")
    if plan.budget is not None:
        asked = plan.budget.ratio if plan.budget.ratio is not None else plan.budget.num_bytes
        lines.append(
            f"feasible: the budget {asked} is kept"
            if plan.is_feasible
            else f"infeasible: the budget {asked} is below this method's least, {plan.ratio:.5f}"
        )
    return "\n".join(lines)


def _short(value: object) -> str:
    if isinstance(value, dict):
        shown = ", ".join(f"{k} {v:,}" for k, v in list(value.items())[:30])
        return shown + (f", ... {len(value) - 30} more" if len(value) > 30 else "")
    return f"{value:,.5g}" if isinstance(value, float) else str(value)
