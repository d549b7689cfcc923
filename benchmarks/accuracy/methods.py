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
import csv
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
from methods_notes import NOTES
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.checkpoint.export import load
from recemb.checkpoint.scoring import ScoringModel
from recemb.cli.export import export_run
from recemb.data.prepared import Prepared
from recemb.tables.tables import Tables
from recemb.train.evaluation import score

RESULTS = Path(__file__).parent.parent / "results"
SWEEPS = {"frappe": "compression", "synthetic": "compression_synthetic"}
TITLES = {"frappe": "Frappe", "synthetic": "generated, Criteo-shaped data"}
FULL, HASH = "full", "hash"
Row = dict[str, str]
Cell = tuple[str, str]
"""A method, and a budget as it stands in the rows."""
BATCH_SIZE, NUM_ROUNDS = 4096, 15
SPEED_BUDGETS = ("0.25", "0.5", "0.1", "0.05", "0.01", "")
SPEED_ROUNDS, SPEED_STEPS = 1, 60
POST = ("fp16", "int8", "int4", "int2")
CLAIMS: tuple[tuple[str, Cell, Cell, float], ...] = (
    ("ALPT, 8 bits, over full tables", ("alpt", "0.5"), (FULL, ""), -0.002),
    ("INT8 over full tables", ("int8", "0.5"), (FULL, ""), -0.002),
    ("LSQ+, 4 bits, over 4 bits after training", ("lsq", "0.25"), (FULL, "post=int4"), 0),
    ("DQRM, 4 bits, over 4 bits after training", ("dqrm", "0.25"), (FULL, "post=int4"), 0),
    *(
        (
            f"{name}, 4 bits, over 2 bits after training, of as many bytes",
            cell,
            (FULL, "post=int2"),
            0,
        )
        for name, cell in (("LSQ+", ("lsq", "0.25")), ("DQRM", ("dqrm", "0.25")))
    ),
    *(
        (f"{method} over hash at 0.25", (method, "0.25"), (HASH, "0.25"), 0)
        for method in ("pep", "deep_light", "deep_light_short", "auto_srh")
    ),
    ("CAFE over hash at 0.01", ("cafe", "0.01"), (HASH, "0.01"), 0),
)
"""A claim, the cell that is to be above another cell, and by how much at least."""
MGQE_BUDGETS = ("0.5", "0.25", "0.1", "0.05")
COLUMNS = (
    *("method", "budget", "seed", "status", "ratio", "serve_bytes", "train_bytes", "full_bytes"),
    *("floor_ratio", "val/auc", "test/auc", "test/logloss", "epochs", "training_seconds"),
    *("samples_per_second", "quiet_samples_per_second", "speed_over_full", "lookup_ms"),
    *("lookup_over_full", "commit", "versions", "cpu", "error"),
)


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
    return _read(out / "rows.csv")


def with_earlier(study: str, rows: list[Row]) -> list[Row]:
    """Return the rows, and those of the results whose cell and seed are not among them."""
    found = {(row["method"], row["budget"], row["seed"]): row for row in rows}
    for row in _read(RESULTS / f"methods_{study}.csv"):
        found.setdefault((row["method"], row["budget"], row["seed"]), row)
    return list(found.values())


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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


def write(study: str, rows: list[Row]) -> None:
    """Write the CSV and the Markdown table of all rows."""
    with (RESULTS / f"methods_{study}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda r: (r["method"], r["budget"], r["seed"])))
    cells: dict[Cell, list[Row]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["budget"]), []).append(row)
    # DPQ has further budgets, for `_equal_bytes` alone.
    budgets = sorted({b for m, b in cells if b and m == HASH}, key=float, reverse=True)
    full = [row for row in cells.get((FULL, ""), []) if row["status"] == "ok"]
    lines = [
        f"# All methods on {TITLES[study]}",
        "",
        f"Written by `python benchmarks/accuracy/methods.py --study {study}`, whose docstring has "
        f"the protocol; do not edit. A row per run is in `methods_{study}.csv`, with its commit "
        "and machine: seeds and methods were added over time. Test AUC, mean ± "
        "standard deviation (number of seeds), at the same bytes to serve in a column. In brackets "
        "the realised ratio where it is below nine tenths of the budget. *floor* is the least "
        "ratio that a method reaches; *failed* a run that ended with an error. Training times are "
        "of all stages of a run and what it searches between them, taken on shared cores; training "
        "bytes those of the stage that holds most. Rows of a method of several stages from before "
        "that was counted, commits before 3899581, have neither. Rows of OptEmbed decay (1e-5, its "
        "default), those of the other methods do not. Samples/s and lookups are of one "
        "run in quiet.",
        "",
        f"Full tables: {_spread(_values(full, 'test/auc'))}.",
        "",
        "| method | " + " | ".join(f"{float(b):g}" for b in budgets) + " | train bytes / full's | "
        "training time / full's | samples/s / full's | lookup / full's |",
        "|---|" + "---|" * (len(budgets) + 4),
    ]
    names = sorted({row["method"] for row in rows} - {FULL})
    for name in names:
        its = [cells.get((name, budget), []) for budget in budgets]
        lines.append(
            f"| {name} | " + " | ".join(_cell(c) for c in its) + " | " + _costs(its, full) + " |"
        )
    below = _below(cells, names, budgets)
    lines += ["", "## Below the plain hash", ""]
    lines += [f"- {what}: {NOTES[study].get(what.split(',')[0], 'no note')}" for what in below]
    lines += [] if below else ["None at the same budget."]
    lines += ["", "## Full tables in fewer bits after training", ""]
    lines += ["| form | ratio | test AUC |", "|---|---|---|"]
    for post in POST:
        if its := cells.get((FULL, f"post={post}")):
            ratio = statistics.mean(_values(its, "ratio"))
            lines.append(f"| {post} | {ratio:.4f} | {_spread(_values(its, 'test/auc'))} |")
    lines += ["", "## What must hold", ""]
    lines += ["| claim | difference in AUC | at least | holds |", "|---|---|---|---|"]
    lines += [line for claim in CLAIMS if (line := _verdict(cells, *claim))]
    lines += [line for budget in MGQE_BUDGETS if (line := _equal_bytes(cells, budget))]
    (RESULTS / f"methods_{study}.md").write_text("\n".join(lines) + "\n")


def _values(rows: list[Row], column: str) -> list[float]:
    return [float(row[column]) for row in rows if row.get(column)]


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread} ({len(values)})"


def _cell(rows: list[Row]) -> str:
    done = [row for row in rows if row["status"] == "ok"]
    if done:
        ratio, budget = statistics.mean(_values(done, "ratio")), float(done[0]["budget"])
        note = f" [{ratio:.4f}]" if ratio < 0.9 * budget else ""
        return _spread(_values(done, "test/auc")) + note
    floors = [row["floor_ratio"] for row in rows if row["status"] == "infeasible"]
    return f"floor {float(floors[0]):.4f}" if floors else ("failed" if rows else "")


def _costs(cells: list[list[Row]], full: list[Row]) -> str:
    """Return the cost columns: the medians over all budgets and seeds, over full tables' means."""
    done = [row for cell in cells for row in cell if row["status"] == "ok"]
    texts = []
    for column in ("train_bytes", "training_seconds"):
        its, base = _values(done, column), _values(full, column)
        texts.append(
            f"{statistics.median(its) / statistics.mean(base):.2f}" if its and base else ""
        )
    for column in ("speed_over_full", "lookup_over_full"):
        its = _values(done, column)
        texts.append(f"{statistics.median(its):.2f}" if its else "")
    return " | ".join(texts)


def _below(cells: dict[Cell, list[Row]], names: list[str], budgets: list[str]) -> list[str]:
    """Return which method is below the hash, at which budget, and by how much."""
    found = []
    for name in names:
        for budget in budgets:
            its, base = (
                _values([r for r in cells.get((n, budget), []) if r["status"] == "ok"], "test/auc")
                for n in (name, HASH)
            )
            if its and base and statistics.mean(its) < statistics.mean(base):
                gap = statistics.mean(its) - statistics.mean(base)
                found.append(f"{name}, {float(budget):g}: {gap:+.4f}")
    return found


def _verdict(
    cells: dict[Cell, list[Row]], claim: str, better: Cell, other: Cell, least: float
) -> str:
    """Return a line on a claim, empty if there are no runs for it."""
    its, base = (
        _values([r for r in cells.get(cell, []) if r["status"] == "ok"], "test/auc")
        for cell in (better, other)
    )
    if not its or not base:
        return ""
    gap = statistics.mean(its) - statistics.mean(base)
    return f"| {claim} | {gap:+.4f} | {least:g} | {'yes' if gap >= least else 'NO'} |"


def _equal_bytes(cells: dict[Cell, list[Row]], budget: str) -> str:
    """Return a line on MGQE over the largest DPQ of no more bytes; empty without runs of both."""

    def its_ratio(rows: list[Row]) -> float:
        return statistics.mean(_values([r for r in rows if r["status"] == "ok"], "ratio"))

    done = {cell: rows for cell, rows in cells.items() if any(r["status"] == "ok" for r in rows)}
    if ("mgqe", budget) not in done:
        return ""
    most = its_ratio(done["mgqe", budget])
    fitting = {
        cell: ratio
        for cell, rows in done.items()
        if cell[0] == "dpq" and (ratio := its_ratio(rows)) <= most
    }
    if not fitting:
        return ""
    other = max(fitting, key=lambda cell: fitting[cell])
    claim = f"MGQE over DPQ of no more bytes, {most:.4f} and {fitting[other]:.4f} of the full ones"
    return _verdict(cells, claim, ("mgqe", budget), other, 0)


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
