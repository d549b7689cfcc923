"""Test AUC and log loss on Frappe beside the published figures.

    python benchmarks/accuracy/frappe.py --data FOLDER [--models dnn,deepfm] [--seeds 1,2,3]

FOLDER holds `frappe/` as the publisher ships it. Each cell is `recemb train
experiment=frappe_MODEL seed=S`. Cells that benchmarks/results/frappe.csv has, or that were finished
in --work, are not run again; an interrupted cell goes on where it stopped. Writes
benchmarks/results/frappe.{csv,md}. The best epoch is chosen on validation; the test split is scored
once.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))

from machine import commit

RESULTS = Path(__file__).parent.parent / "results"

# Test AUC and log loss of BARS frappe_x1 (openbenchmark.github.io/BARS), one run each.
PUBLISHED = {
    "lr": (0.9356, 0.3076),
    "fm": (0.9671, 0.2065),
    "dnn": (0.9833, 0.1622),
    "ipnn": (0.9841, 0.1540),
    "wide_deep": (0.9841, 0.1490),
    "deepfm": (0.9842, 0.1482),
    "dcn": (0.9839, 0.1527),
    "dcnv2": (0.9845, 0.1491),
    "xdeepfm": (0.9845, 0.1466),
    "autoint": (0.9831, 0.1637),
    "masknet": (0.9837, 0.1696),
    "dlrm": (0.9840, 0.1444),
    "finalmlp": (0.9861, 0.1484),
}
REQUIRED = "dnn,deepfm,wide_deep,dcnv2,dlrm,fm,autoint,finalmlp,xdeepfm"
BAND = 0.0015


COLUMNS = (
    *("model", "seed", "val_auc", "test_auc", "test_logloss", "epochs", "steps"),
    *("commit", "torch", "cpu", "threads"),
)
Row = dict[str, str]


def train(model: str, seed: int, options: argparse.Namespace) -> Row | None:
    """Run a cell, or go on with it, and return its row; None if it failed."""
    folder = options.work / f"{model}-{seed}"
    if not (folder / "summary.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "commit").write_text(commit())
        with (folder / "output.txt").open("w") as output:
            subprocess.run(
                [
                    *(sys.executable, "-m", "recemb", "train", f"experiment=frappe_{model}"),
                    *(f"seed={seed}", f"paths.data={options.data}", f"paths.run={folder}"),
                    *(f"paths.cache={options.work}/cache", "logger=none", "progress=false"),
                    f"trainer.num_threads={options.threads}",
                ],
                check=False,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        print(model, seed, (folder / "output.txt").read_text().splitlines()[-4:], flush=True)
    if not (folder / "summary.json").exists():
        return None
    summary = json.loads((folder / "summary.json").read_text())
    metrics = summary["metrics"]
    values = (
        *(model, seed, metrics["val/auc"], metrics["test/auc"], metrics["test/logloss"]),
        *(summary["epochs"], summary["steps"], (folder / "commit").read_text()),
        *(summary["versions"]["torch"], summary["hardware"]["cpu"], summary["hardware"]["threads"]),
    )
    return dict(zip(COLUMNS, map(str, values), strict=True))


def read_rows() -> dict[tuple[str, int], Row]:
    """Return the rows of earlier runs."""
    path = RESULTS / "frappe.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {(row["model"], int(row["seed"])): row for row in csv.DictReader(file)}


def write(rows: dict[tuple[str, int], Row]) -> str:
    """Write the CSV and the Markdown table of all rows; return the latter."""
    with (RESULTS / "frappe.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[cell] for cell in sorted(rows))
    lines = [
        "# Frappe: test AUC and log loss",
        "",
        "Made by `python benchmarks/accuracy/frappe.py`; a row per run, with its commit and "
        "machine, is in `frappe.csv`. Published: BARS frappe_x1, one run each. The training "
        "negatives here are re-drawn by the official rule, so figures compare to about 0.001 AUC. "
        "Selected on validation, reported on test.",
        "",
        "| model | seeds | test AUC, mean ± sd | published AUC | difference | "
        f"at least published - {BAND} | test log loss, mean ± sd | published log loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, (auc, logloss) in PUBLISHED.items():
        seeds = sorted(seed for name, seed in rows if name == model)
        if not seeds:
            continue
        aucs, losses = ([float(rows[model, seed][key]) for seed in seeds] for key in COLUMNS[3:5])
        mean = statistics.mean(aucs)
        lines.append(
            f"| {model} | {', '.join(map(str, seeds))} | {_spread(aucs)} | {auc:.4f} | "
            f"{mean - auc:+.4f} | {'yes' if mean >= auc - BAND else 'NO'} | {_spread(losses)} | "
            f"{logloss:.4f} |"
        )
    text = "\n".join(lines) + "\n"
    (RESULTS / "frappe.md").write_text(text)
    return text


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def main() -> None:
    """Run the cells, some at a time, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/frappe"))
    parser.add_argument("--models", default=REQUIRED)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="run cells of the CSV again")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows = read_rows()
    wanted = [(model, seed) for seed in seeds for model in options.models.split(",")]
    wanted = [cell for cell in wanted if options.again or cell not in rows]
    RESULTS.mkdir(exist_ok=True)
    with ThreadPoolExecutor(options.workers) as pool:
        for cell, row in zip(wanted, pool.map(lambda c: train(*c, options), wanted), strict=True):
            if row is not None:
                rows[cell] = row
                write(rows)
    print(write(rows))


if __name__ == "__main__":
    main()
