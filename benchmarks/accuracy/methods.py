"""Every method at every budget: accuracy, bytes, training speed and lookup latency.

    python benchmarks/accuracy/methods.py --data FOLDER [--study frappe,synthetic] [--seeds 1,2,3]
        [--methods NAME,...]

FOLDER holds `frappe/` as the publisher ships it; the synthetic data are generated. The cells are
those of `recemb sweep sweep=compression` and `sweep=compression_synthetic`, where the protocol
stands; one sweep for each seed, --workers of them at a time, each on one thread. What is finished
in --work is not run again, so that the same command goes on where it was stopped. Rows that the
results have already stay, but for those that are run now: seeds and methods can be added one by
one, and a row's commit says what it was made with. `--fresh` begins anew.

Latency and speed are measured after all training, on one thread, nothing else running, with the
first seed's runs. Latency: a lookup of 4096 test examples by the exported tables, beside that of
the full tables in the same round; the median of the rounds' ratios. Speed: a run of the same
command for 60 updates, of each method at one budget (0.25 if it reaches that), in turn with full
tables; samples per second over its fits.

The full tables of every seed are also exported in fewer bits, without further training, and scored.

Writes benchmarks/results/methods_STUDY.{csv,md}.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from methods_page import FULL, POST, RESULTS, Cell, Row, read_csv, with_earlier, write
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.checkpoint.export import load
from recemb.checkpoint.scoring import ScoringModel
from recemb.cli.export import export_run
from recemb.data.prepared import Prepared
from recemb.tables.tables import Tables
from recemb.train.evaluation import score

SWEEPS = {"frappe": "compression", "synthetic": "compression_synthetic"}
BATCH_SIZE, NUM_ROUNDS = 4096, 15
SPEED_BUDGETS = ("0.25", "0.5", "0.1", "0.05", "0.01", "")
SPEED_ROUNDS, SPEED_STEPS = 1, 60


def sweep(study: str, seed: int, options: argparse.Namespace) -> Path:
    """Run the cells of a seed; return their folder."""
    out = options.work / f"{study}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    words = [
        *(f"sweep={SWEEPS[study]}", f"sweep.seeds=[{seed}]", f"out={out}"),
        *(f"paths.data={options.data}", f"paths.cache={options.work}/cache-{study}"),
        "trainer.num_threads=1",
    ]
    if options.methods:
        names = options.methods.split(",")
        entries = [f"{{embedding: {FULL}, budgets: [null]}}" if n == FULL else n for n in names]
        words.append(f"sweep.methods=[{', '.join(entries)}]")
    with (out / "output.txt").open("a") as output:
        subprocess.run(
            [sys.executable, "-m", "recemb", "sweep", *words],
            check=False,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    return out


def read_rows(out: Path) -> list[Row]:
    """Return the rows of a sweep, none if it has written none."""
    return read_csv(out / "rows.csv")


def exported(run: Path, post: str = "none") -> ScoringModel:
    """Return the model of a run as it is served."""
    out = run / f"model-{post}.recemb"
    if not out.exists():
        with initialize_config_module("recemb.conf", version_base="1.3"):
            words = [f"run='{run}'", f"out='{out}'", f"post={post}"]
            config = compose("export", overrides=words)
        export_run(config)
    return load(out)


def post_training(rows: list[Row], out: Path, cache: Path) -> list[Row]:
    """Return rows of the full tables of a seed in fewer bits."""
    full = next((r for r in rows if r["method"] == FULL and r["status"] == "ok"), None)
    if full is None:
        return []
    prepared = Prepared(next(cache.glob("*/manifest.json")).parent)
    found = []
    for post in POST:
        served = exported(out / full["run"], post)
        scored = score(
            prepared.batches("test", batch_size=BATCH_SIZE),
            tables=served.tables,
            model=served.model,
            device=torch.device("cpu"),
        )
        num_bytes = served.tables.storage().serve_bytes
        row = {k: full[k] for k in ("method", "seed", "status", "full_bytes", "versions", "cpu")}
        row |= {"budget": f"post={post}", "serve_bytes": str(num_bytes), "commit": full["commit"]}
        row |= {"ratio": str(num_bytes / int(full["full_bytes"]))}
        found.append(row | {k: str(v) for k, v in scored.metrics("test").items()})
    return found


def latencies(rows: list[Row], out: Path, cache: Path) -> dict[Cell, tuple[float, float]]:
    """Return milliseconds of a lookup, and their ratio to full tables, by method and budget."""
    torch.set_num_threads(1)
    prepared = Prepared(next(cache.glob("*/manifest.json")).parent)
    batch = next(iter(prepared.batches("test", batch_size=BATCH_SIZE)))
    finished = [row for row in rows if row["status"] == "ok"]
    full = next((row for row in finished if row["method"] == FULL), None)
    if full is None:
        return {}
    reference = exported(out / full["run"]).tables
    found = {}
    for row in finished:
        tables = exported(out / row["run"]).tables
        times, ratios = [], []
        for _ in range(NUM_ROUNDS):
            base, its = (_milliseconds(t, batch.features) for t in (reference, tables))
            times.append(its)
            ratios.append(its / base)
        found[row["method"], row["budget"]] = (statistics.median(times), statistics.median(ratios))
    return found


@torch.no_grad()
def _milliseconds(tables: Tables, features: KeyedJaggedTensor) -> float:
    started = time.perf_counter()
    tables(features)
    return (time.perf_counter() - started) * 1e3


def speeds(rows: list[Row], out: Path) -> dict[Cell, tuple[float, float]]:
    """Return samples per second, and their ratio to full tables', by method and budget."""
    finished = {(row["method"], row["budget"]): row for row in rows if row["status"] == "ok"}
    chosen: dict[str, Row] = {}
    for budget in SPEED_BUDGETS:
        for (method, its), row in finished.items():
            if its == budget:
                chosen.setdefault(method, row)
    if FULL not in chosen:
        return {}
    measured: dict[str, list[float]] = {method: [] for method in chosen}
    for _ in range(SPEED_ROUNDS):
        for method, row in chosen.items():
            measured[method].append(_samples_per_second(out / row["run"]))
    found = {}
    for method, row in chosen.items():
        ratios = [its / full for its, full in zip(measured[method], measured[FULL], strict=True)]
        key = (method, row["budget"])
        found[key] = (statistics.median(measured[method]), statistics.median(ratios))
    return found


def _samples_per_second(run: Path) -> float:
    """Return the speed of a few updates by the command of a run."""
    command = json.loads((run / "cell.json").read_text())["command"][1:]
    with tempfile.TemporaryDirectory() as folder:
        changes = [f"trainer.max_steps={SPEED_STEPS}", f"paths.run={folder}/run"]
        subprocess.run(
            [sys.executable, "-m", "recemb", *command, *changes],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    return float(summary["samples_per_second"])


def run(study: str, options: argparse.Namespace) -> None:
    """Run the sweeps of a study, measure latencies, and write its tables."""
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if not options.report_only:
        with ThreadPoolExecutor(options.workers) as pool:
            list(pool.map(lambda seed: sweep(study, seed, options), seeds))
    outs = {seed: options.work / f"{study}-{seed}" for seed in seeds}
    cache = options.work / f"cache-{study}"
    rows = [row for seed in seeds for row in read_rows(outs[seed])]
    rows += [row for s in seeds for row in post_training(read_rows(outs[s]), outs[s], cache)]
    if not options.no_latency:
        first = read_rows(outs[seeds[0]])
        timed = latencies(first, outs[seeds[0]], cache)
        speed = speeds(first, outs[seeds[0]])
        for row in rows:
            key = (row["method"], row["budget"])
            if int(row["seed"]) == seeds[0] and key in timed:
                row["lookup_ms"], row["lookup_over_full"] = (f"{t:.4f}" for t in timed[key])
            if int(row["seed"]) == seeds[0] and key in speed:
                rate, ratio = speed[key]
                row["quiet_samples_per_second"] = f"{rate:.0f}"
                row["speed_over_full"] = f"{ratio:.3f}"
    write(study, rows if options.fresh else with_earlier(study, rows))
    print((RESULTS / f"methods_{study}.md").read_text())


def main() -> None:
    """Run the studies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/methods"))
    parser.add_argument("--study", default="frappe,synthetic")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--methods", default="", help="those of the sweep's alone")
    parser.add_argument("--fresh", action="store_true", help="drop the rows of earlier runs")
    parser.add_argument("--report-only", action="store_true", help="report what is finished")
    parser.add_argument("--no-latency", action="store_true", help="leave latency and speed out")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for study in options.study.split(","):
        run(study, options)


if __name__ == "__main__":
    main()
