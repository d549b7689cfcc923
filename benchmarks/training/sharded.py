"""Sharded tables: steps per second, bytes moved and peak memory per rank, for each plan.

    python benchmarks/training/sharded.py [--rows 17000000] [--world-sizes 1 2 4] [--steps 20]

One table of 16 values (1.1 GB in float32 at the default rows) with row-wise Adagrad and eight small
ones, a batch of 4096 examples of nine ids each, Zipf-like; no model behind them, so that what is
measured is lookup, exchange and update. Each run starts fresh processes, by gloo on this machine.
World size 1 is the same tables unsharded. "moved" counts what a rank hands to collectives in a step
(rows out, vectors back, gradients out), its own share included; "peak" is the resident size of a
process, Python and libraries (the row "empty") included; "ready" is that before the first step.
"model" is what the cost model of docs/scale.md has for "moved", from the ids of the same batches.

Writes benchmarks/results/sharded.{csv,md}.
"""

import argparse
import csv
import itertools
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import context
from torch import Tensor, nn
from torch import distributed as dist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables import TableOptimizer, TableSpec, full_tables
from recemb.tables.planned import PlannedTables
from recemb.tables.sharded import ShardedTables
from recemb.tables.sharding import plan_sharding, read_shardings

WIDTH, BATCH_SIZE, NUM_SMALL, SMALL_ROWS = 16, 4096, 8, 10_000
PLANS = ("row_wise", "table_wise", "column_wise", "data_parallel")
RESULTS = Path(__file__).resolve().parents[1] / "results"


def specs_of(num_rows: int) -> list[TableSpec]:
    sizes = [num_rows, *[SMALL_ROWS] * NUM_SMALL]
    return [
        TableSpec(name=f"t{f}", num_embeddings=n, embedding_dim=WIDTH, feature_names=(f"f{f}",))
        for f, n in enumerate(sizes)
    ]


def tables_of(num_rows: int, plan: str, world_size: int) -> PlannedTables:
    """Return this rank's part of the tables; Adagrad by value where columns are cut."""
    kind = "adagrad" if plan == "column_wise" else "rowwise_adagrad"
    optimizer, specs = TableOptimizer(kind=kind), specs_of(num_rows)
    if world_size == 1:
        return full_tables(specs, optimizer=optimizer)
    meta = full_tables(specs, optimizer=optimizer, device=torch.device("meta"))
    shardings = read_shardings(plan, meta.plan.tables)
    sharding = plan_sharding(meta.plan.tables, shardings, world_size=world_size)
    return ShardedTables(meta, sharding)


def batches(num_rows: int, rank: int, world_size: int) -> Iterator[KeyedJaggedTensor]:
    """Yield this rank's shares of endless batches."""
    sizes = torch.tensor([spec.num_embeddings for spec in specs_of(num_rows)]).unsqueeze(1)
    first, last = (BATCH_SIZE * r // world_size for r in (rank, rank + 1))
    for step in itertools.count():
        draws = torch.rand(
            len(sizes), BATCH_SIZE, generator=torch.Generator().manual_seed(step)
        ).double()
        ids = (sizes.double() ** draws).long().clamp(max=sizes - 1)[:, first:last]
        yield KeyedJaggedTensor(
            keys=[f"f{f}" for f in range(len(sizes))],
            values=ids.reshape(-1),
            lengths=torch.ones(ids.numel(), dtype=torch.int32),
        )


class Moved:
    """Counts the bytes that this process hands to collectives."""

    def __init__(self) -> None:
        self.num_bytes = 0
        for name in ("all_to_all_single", "all_gather", "all_reduce"):
            setattr(dist, name, self._counting(getattr(dist, name)))

    def _counting(self, collective: Any) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            # The last tensor among the arguments is what is sent.
            tensors = [a for a in (*arguments, named.get("input")) if isinstance(a, Tensor)]
            self.num_bytes += tensors[-1].nbytes
            return collective(*arguments, **named)

        return counted


def model_bytes(plan: str, num_rows: int, world_size: int) -> float:
    """Return what the rank that moves most hands to collectives in a step, by docs/scale.md."""
    tables = full_tables(specs_of(num_rows), device=torch.device("meta")).plan.tables
    shardings = read_shardings(plan, tables)
    shards = plan_sharding(tables, shardings, world_size=world_size).shards
    sent = [0] * world_size
    for asker in range(world_size):
        batch = next(batches(num_rows, asker, world_size))
        asked = {f"t{f}": batch[f"f{f}"].values().unique() for f in range(1 + NUM_SMALL)}
        for shard in shards:
            ids = asked[shard.table] - shard.first_row
            count = int(((ids >= 0) & (ids < shard.num_rows)).sum())
            vectors = 4 * shard.width * count
            if plan == "data_parallel":
                sent[asker] += (8 * count + vectors) if shard.rank == asker else 0
                continue
            sent[asker] += 8 * count + vectors
            sent[shard.rank] += vectors
    return float(max(sent))


def resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_rank(rank: int, world_size: int, plan: str, rows: int, steps: int, folder: str) -> None:
    """Train, and leave the figures of this rank in a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", rank=rank, world_size=world_size, init_method=f"file://{folder}/rendezvous"
    )
    found: dict[str, Any] = {"empty": resident_bytes()}
    tables = tables_of(rows, plan, world_size)
    found["ready"] = resident_bytes()
    reader = nn.Linear(WIDTH * (1 + NUM_SMALL), 1)
    moved, seconds, its_bytes = Moved(), [], []
    for _, features in zip(range(steps), batches(rows, rank, world_size), strict=False):
        dist.barrier()
        before, started = moved.num_bytes, time.perf_counter()
        reader(tables(features).values()).square().sum().backward()
        seconds.append(time.perf_counter() - started)
        its_bytes.append(moved.num_bytes - before)
    # The first steps warm up.
    found["step_seconds"] = statistics.median(seconds[3:])
    found["moved"] = statistics.median(its_bytes[3:])
    found["peak"] = resident_bytes()
    held = tables.rank_bytes()[rank] if isinstance(tables, ShardedTables) else None
    found["held"] = tables.storage().train_bytes if held is None else held
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def measure(plan: str, world_size: int, rows: int, steps: int, folder: Path) -> dict[str, Any]:
    """Return one row of the results: the slowest rank's time, the largest of everything else."""
    folder.mkdir(parents=True)
    spawning = multiprocessing.get_context("spawn")
    ranks = [
        spawning.Process(target=run_rank, args=(r, world_size, plan, rows, steps, str(folder)))
        for r in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    found = [json.loads((folder / f"{r}.json").read_text()) for r in range(world_size)]
    largest = {name: max(its[name] for its in found) for name in found[0]}
    return {
        "plan": plan if world_size > 1 else "unsharded",
        "world_size": world_size,
        "samples_per_second": round(BATCH_SIZE / largest["step_seconds"]),
        "moved_bytes_per_step": round(largest["moved"]),
        "model_bytes_per_step": round(model_bytes(plan, rows, world_size)) if world_size > 1 else 0,
        "table_bytes_per_rank": round(largest["held"]),
        "resident_bytes_empty": largest["empty"],
        "resident_bytes_ready": largest["ready"],
        "resident_bytes_peak": largest["peak"],
    }


def write(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write the rows, and a table of them."""
    with (out / "sharded.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    first = rows[0]
    lines = [
        "# Sharded tables",
        "",
        "Written by `python benchmarks/training/sharded.py`, whose docstring says what is "
        f"measured; do not edit. {first['rows']:,} rows of 16 values and eight small tables, "
        f"{BATCH_SIZE:,} examples of nine ids a step, all processes on one machine: "
        f"{first['cpu']}, {first['memory']}; commit {first['commit']}, load at the start "
        f"{first['load_at_start']}. Bytes are of the rank that has most.",
        "",
        "| plan | ranks | samples/s | moved in a step | model | rows and state | ready | peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes = (
            *("moved_bytes_per_step", "model_bytes_per_step", "table_bytes_per_rank"),
            *("resident_bytes_ready", "resident_bytes_peak"),
        )
        cells = " | ".join(f"{row[name] / 1e6:,.2f} MB" for name in sizes)
        lines.append(
            f"| {row['plan']} | {row['world_size']} | {row['samples_per_second']:,} | {cells} |"
        )
    empty = max(row["resident_bytes_empty"] for row in rows) / 1e6
    lines += ["", f"A process that has only imported everything: {empty:,.0f} MB."]
    (out / "sharded.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Measure every plan and world size, print and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=17_000_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--plans", nargs="+", default=list(PLANS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args()
    rows = []
    for world_size in chosen.world_sizes:
        for plan in chosen.plans if world_size > 1 else chosen.plans[:1]:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(plan, world_size, chosen.rows, chosen.steps, Path(folder) / "ranks")
            rows.append({**row, "rows": chosen.rows, **context()})
            print(json.dumps(row), flush=True)
    write(rows, chosen.out)


if __name__ == "__main__":
    main()
