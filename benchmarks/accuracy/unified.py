"""Unified Embedding: sharing, several lookups, and both, over budgets.

    python benchmarks/accuracy/unified.py --data FOLDER [--study movielens,frappe] [--seeds 1,2,3]

FOLDER holds `ml-100k/` and `frappe/` as the publishers ship them. MovieLens 100K: threes left out,
8:1:1, vectors of 30 values. Frappe: the validation and test files of BARS frappe_x1 as one set,
8:1:1, vectors of 16 values. DCN-V2 with one cross layer and a layer of 192 throughout.

Each cell is a `recemb train`; the hash functions are drawn anew with every seed. Cells that the
study's results have, or that were finished in --work, are not run again. Writes
benchmarks/results/unified_STUDY.{csv,md}. The best epoch is chosen on validation; the test split is
scored once.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))

from machine import commit

RESULTS = Path(__file__).parent.parent / "results"
BOUND = 0.05
_UNIFIED = ("embedding=unified", f"embedding.init_bound={BOUND}", "embedding.exact_below=0")
# Name -> overrides. Initial weights are uniform in +-BOUND throughout.
VARIANTS = {
    "collisionless": ("embedding=full", f"embedding.init_std={BOUND / 3**0.5:.6f}"),
    "separate tables, 1 lookup": (*_UNIFIED, "embedding.lookups=1", "embedding.multiplex=false"),
    "separate tables, 2 lookups": (*_UNIFIED, "embedding.lookups=2", "embedding.multiplex=false"),
    "separate tables, 1 lookup, tiny ones exact": (
        *_UNIFIED,
        *("embedding.lookups=1", "embedding.multiplex=false", "embedding.exact_below=100"),
    ),
    "one table, 1 lookup": (*_UNIFIED, "embedding.lookups=1"),
    "one table, 1 lookup, tiny ones exact": (
        *_UNIFIED,
        *("embedding.lookups=1", "embedding.exact_below=100"),
    ),
    "one table, 2 lookups": (*_UNIFIED, "embedding.lookups=2"),
    "one table, 3 or 1 lookups": (*_UNIFIED, "embedding.lookups=auto"),
}
FULL, SEPARATE, SHARED, VARIABLE = (
    "collisionless",
    "separate tables, 1 lookup",
    "one table, 1 lookup",
    "one table, 3 or 1 lookups",
)
Claim = tuple[str, tuple[str, float], tuple[str, float], float]
"""What it says, what is better (variant, budget) than what, and by how much test AUC at least."""


@dataclass(frozen=True)
class Study:
    """A data set and what the paper's claim is held to on it.

    Attributes:
        title: of the table.
        words: overrides of `recemb train`.
        budgets: ratios of the collisionless bytes.
        claims: the claims.
    """

    title: str
    words: tuple[str, ...]
    budgets: tuple[float, ...]
    claims: tuple[Claim, ...]


_FRAPPE_FIELDS = (
    *("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather"),
    *("country", "city"),
)
STUDIES = {
    "movielens": Study(
        title="Unified Embedding on MovieLens 100K",
        words=("experiment=ml100k_dcnv2",),
        budgets=(1.0, 0.5, 0.1),
        claims=(
            ("sharing: one table over separate ones", (SHARED, 1.0), (SEPARATE, 1.0), 0.008),
            ("sharing: one table over separate ones", (SHARED, 0.1), (SEPARATE, 0.1), 0.015),
            ("several lookups: over one, in one table", (VARIABLE, 0.1), (SHARED, 0.1), 0.04),
            ("both: half the bytes, against collisionless", (VARIABLE, 0.5), (FULL, 1.0), -0.004),
        ),
    ),
    "frappe": Study(
        title="Unified Embedding on Frappe",
        words=(
            *(
                "experiment=ml100k_dcnv2",
                "data=table",
                "~data.features",
                "data.label=label",
                "embedding_dim=16",
            ),
            *("data.raw=${paths.data}/frappe", "data.files=[valid.csv.gz,test.csv.gz]"),
            *(f"+data.categorical.{field}=vocabulary" for field in _FRAPPE_FIELDS),
        ),
        budgets=(1.0, 0.1),
        claims=(
            ("sharing: one table over separate ones", (SHARED, 0.1), (SEPARATE, 0.1), 0.01),
            ("several lookups: over one, in one table", (VARIABLE, 0.1), (SHARED, 0.1), 0.03),
        ),
    ),
}
COLUMNS = (
    *("variant", "budget", "seed", "val_auc", "test_auc", "test_logloss", "ratio", "bytes"),
    *("epochs", "commit", "torch", "cpu"),
)
Row = dict[str, str]
Cell = tuple[str, float, int]


def train(study: str, cell: Cell, options: argparse.Namespace) -> Row | None:
    """Run a cell and return its row; None if it failed."""
    variant, budget, seed = cell
    folder = options.work / study / f"{variant}-{budget}-{seed}".replace(" ", "_").replace(",", "")
    words = list(VARIANTS[variant])
    if variant != FULL:
        words += [f"budget={budget}", f"embedding.hash_seed={seed}"]
    if not (folder / "summary.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "commit").write_text(commit())
        with (folder / "output.txt").open("w") as output:
            subprocess.run(
                [
                    *(sys.executable, "-m", "recemb", "train", *STUDIES[study].words, *words),
                    *(f"seed={seed}", f"paths.data={options.data}", f"paths.run={folder}"),
                    *(f"paths.cache={options.work}/cache", "logger=none", "progress=false"),
                    "trainer.num_threads=1",
                ],
                check=False,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
    if not (folder / "summary.json").exists():
        print(study, *cell, "failed", (folder / "output.txt").read_text()[-500:], flush=True)
        return None
    summary = json.loads((folder / "summary.json").read_text())
    metrics = summary["metrics"]
    print(study, *cell, f"{metrics['test/auc']:.4f}", flush=True)
    values = (
        *(variant, budget, seed, metrics["val/auc"], metrics["test/auc"]),
        *(metrics["test/logloss"], summary["ratio"], summary["bytes"]["serve"]),
        *(summary["epochs"], (folder / "commit").read_text()),
        *(summary["versions"]["torch"], summary["hardware"]["cpu"]),
    )
    return dict(zip(COLUMNS, map(str, values), strict=True))


def read_rows(study: str) -> dict[Cell, Row]:
    """Return the rows of earlier runs."""
    path = RESULTS / f"unified_{study}.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {
            (row["variant"], float(row["budget"]), int(row["seed"])): row
            for row in csv.DictReader(file)
        }


def write(study: str, rows: dict[Cell, Row]) -> str:
    """Write the CSV and the Markdown table of all rows; return the latter."""
    with (RESULTS / f"unified_{study}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[cell] for cell in sorted(rows))
    budgets = sorted({budget for _, budget, _ in rows}, reverse=True)
    aucs: dict[tuple[str, float], list[float]] = {}
    for (variant, budget, _), row in sorted(rows.items()):
        aucs.setdefault((variant, budget), []).append(float(row["test_auc"]))
    lines = [
        f"# {STUDIES[study].title}",
        "",
        f"Written by `python benchmarks/accuracy/unified.py --study {study}`, whose docstring has "
        f"the protocol; do not edit. A row per run is in `unified_{study}.csv`. Test AUC, mean ± "
        "standard deviation (number of seeds; hash functions drawn anew), at the same bytes in a "
        "column; 1 is the collisionless table's.",
        "",
        "| | " + " | ".join(f"budget {b:g}" for b in budgets) + " |",
        "|---|" + "---|" * len(budgets),
    ]
    for variant in VARIANTS:
        cells = [_spread(aucs.get((variant, budget), [])) for budget in budgets]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    lines += ["", "| claim | budget | difference | bound | holds |", "|---|---|---|---|---|"]
    for what, more, less, bound in STUDIES[study].claims:
        if more in aucs and less in aucs:
            gap = statistics.mean(aucs[more]) - statistics.mean(aucs[less])
            lines.append(
                f"| {what} | {more[1]:g} | {gap:+.4f} | at least {bound:+.3f} | "
                f"{'yes' if gap >= bound else 'NO'} |"
            )
    text = "\n".join(lines) + "\n"
    (RESULTS / f"unified_{study}.md").write_text(text)
    return text


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread} ({len(values)})"


def run(study: str, options: argparse.Namespace) -> None:
    """Run the cells of a study, some at a time, and write its tables."""
    rows = read_rows(study)
    wanted = [
        (variant, budget, int(seed))
        for seed in options.seeds.split(",")
        for variant in VARIANTS
        for budget in ((1.0,) if variant == FULL else STUDIES[study].budgets)
    ]
    wanted = [cell for cell in wanted if cell not in rows]
    with ThreadPoolExecutor(options.workers) as pool:
        found = pool.map(lambda cell: train(study, cell, options), wanted)
        for cell, row in zip(wanted, found, strict=True):
            if row is not None:
                rows[cell] = row
                write(study, rows)
    print(write(study, rows))


def main() -> None:
    """Run the studies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/unified"))
    parser.add_argument("--study", default="movielens,frappe")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for study in options.study.split(","):
        run(study, options)


if __name__ == "__main__":
    main()
