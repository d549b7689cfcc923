"""Unified Embedding on MovieLens 100K: sharing, several lookups, and both, over budgets.

    python benchmarks/accuracy/unified.py --data FOLDER [--seeds 1,2,3] [--budgets 1.0,0.5,0.1]

FOLDER holds `ml-100k/` as the publisher ships it. Each cell is `recemb train
experiment=ml100k_dcnv2`; the hash functions are drawn anew with every seed. Cells that
benchmarks/results/unified.csv has, or that were finished in --work, are not run again. Writes
benchmarks/results/unified.{csv,md}. The best epoch is chosen on validation; the test split is
scored once.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "results"
BOUND = 0.05
_UNIFIED = ("embedding=unified", f"embedding.init_bound={BOUND}", "embedding.exact_below=0")
# Name -> overrides. Initial weights are uniform in +-BOUND throughout.
VARIANTS = {
    "collisionless": ("embedding=full", f"embedding.init_std={BOUND / 3**0.5:.6f}"),
    "separate tables, 1 lookup": (*_UNIFIED, "embedding.lookups=1", "embedding.multiplex=false"),
    "separate tables, 2 lookups": (*_UNIFIED, "embedding.lookups=2", "embedding.multiplex=false"),
    "one table, 1 lookup": (*_UNIFIED, "embedding.lookups=1"),
    "one table, 2 lookups": (*_UNIFIED, "embedding.lookups=2"),
    "one table, 3 or 1 lookups": (*_UNIFIED, "embedding.lookups=auto"),
}
SEPARATE, SHARED, VARIABLE = (
    "separate tables, 1 lookup",
    "one table, 1 lookup",
    "one table, 3 or 1 lookups",
)
# What the paper's claim is held to here: (what, budget, at least).
CLAIMS = (
    ("sharing: one table over separate ones", SHARED, SEPARATE, 1.0, 0.008),
    ("sharing: one table over separate ones", SHARED, SEPARATE, 0.1, 0.015),
    ("several lookups: over one, in one table", VARIABLE, SHARED, 0.1, 0.04),
)
FLOOR = -0.004
COLUMNS = (
    *("variant", "budget", "seed", "val_auc", "test_auc", "test_logloss", "ratio", "bytes"),
    *("epochs", "commit", "torch", "cpu"),
)
Row = dict[str, str]
Cell = tuple[str, float, int]


def train(cell: Cell, options: argparse.Namespace) -> Row | None:
    """Run a cell and return its row; None if it failed."""
    variant, budget, seed = cell
    folder = options.work / f"{variant}-{budget}-{seed}".replace(" ", "_").replace(",", "")
    words = list(VARIANTS[variant])
    if variant != "collisionless":
        words += [f"budget={budget}", f"embedding.hash_seed={seed}"]
    if not (folder / "summary.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "commit").write_text(_commit())
        with (folder / "output.txt").open("w") as output:
            subprocess.run(
                [
                    *(sys.executable, "-m", "recemb", "train", "experiment=ml100k_dcnv2", *words),
                    *(f"seed={seed}", f"paths.data={options.data}", f"paths.run={folder}"),
                    *(f"paths.cache={options.work}/cache", "logger=none", "progress=false"),
                    "trainer.num_threads=1",
                ],
                check=False,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
    if not (folder / "summary.json").exists():
        print(*cell, "failed", (folder / "output.txt").read_text()[-500:], flush=True)
        return None
    summary = json.loads((folder / "summary.json").read_text())
    metrics = summary["metrics"]
    print(*cell, f"{metrics['test/auc']:.4f}", flush=True)
    values = (
        *(variant, budget, seed, metrics["val/auc"], metrics["test/auc"]),
        *(metrics["test/logloss"], summary["ratio"], summary["bytes"]["serve"]),
        *(summary["epochs"], (folder / "commit").read_text()),
        *(summary["versions"]["torch"], summary["hardware"]["cpu"]),
    )
    return dict(zip(COLUMNS, map(str, values), strict=True))


def read_rows() -> dict[Cell, Row]:
    """Return the rows of earlier runs."""
    path = RESULTS / "unified.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {
            (row["variant"], float(row["budget"]), int(row["seed"])): row
            for row in csv.DictReader(file)
        }


def _commit() -> str:
    run = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def write(rows: dict[Cell, Row]) -> str:
    """Write the CSV and the Markdown table of all rows; return the latter."""
    with (RESULTS / "unified.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[cell] for cell in sorted(rows))
    budgets = sorted({budget for _, budget, _ in rows}, reverse=True)
    aucs: dict[tuple[str, float], list[float]] = {}
    for (variant, budget, _), row in sorted(rows.items()):
        aucs.setdefault((variant, budget), []).append(float(row["test_auc"]))
    lines = [
        "# Unified Embedding on MovieLens 100K",
        "",
        "Made by `python benchmarks/accuracy/unified.py`; a row per run is in `unified.csv`. Test "
        "AUC, mean ± standard deviation over seeds (hash functions drawn anew), at the same bytes "
        "in a column. DCN-V2 with one cross layer, vectors of 30 values, threes left out.",
        "",
        "| | " + " | ".join(f"budget {b:g}" for b in budgets) + " |",
        "|---|" + "---|" * len(budgets),
    ]
    for variant in VARIANTS:
        cells = [_spread(aucs.get((variant, budget), [])) for budget in budgets]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    lines += ["", "| claim | budget | difference | bound | holds |", "|---|---|---|---|---|"]
    claims = [*CLAIMS, ("both, against collisionless", VARIABLE, "collisionless", 0.5, FLOOR)]
    for what, more, less, budget, bound in claims:
        mine = aucs.get((more, budget))
        other = aucs.get((less, 1.0 if less == "collisionless" else budget))
        if mine and other:
            gap = statistics.mean(mine) - statistics.mean(other)
            lines.append(
                f"| {what} | {budget:g} | {gap:+.4f} | at least {bound:+.3f} | "
                f"{'yes' if gap >= bound else 'NO'} |"
            )
    text = "\n".join(lines) + "\n"
    (RESULTS / "unified.md").write_text(text)
    return text


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread} ({len(values)})"


def main() -> None:
    """Run the cells, some at a time, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/unified"))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--budgets", default="1.0,0.5,0.1")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    budgets = [float(budget) for budget in options.budgets.split(",")]
    rows = read_rows()
    wanted = [
        (variant, budget, seed)
        for seed in seeds
        for variant in VARIANTS
        for budget in ([1.0] if variant == "collisionless" else budgets)
    ]
    wanted = [cell for cell in wanted if cell not in rows]
    RESULTS.mkdir(exist_ok=True)
    with ThreadPoolExecutor(options.workers) as pool:
        for cell, row in zip(wanted, pool.map(lambda c: train(c, options), wanted), strict=True):
            if row is not None:
                rows[cell] = row
                write(rows)
    print(write(rows))


if __name__ == "__main__":
    main()
