"""What the accuracy benchmarks of sequence models share: runs, made once, and their tables."""

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))

from machine import commit

RESULTS = Path(__file__).parent.parent / "results"
MEASURED = (
    *("val_auc", "test_auc", "test_gauc", "test_logloss", "best_step", "table_bytes"),
    *("samples_per_second", "commit", "torch", "cpu", "threads"),
)
"""Columns of every row, behind those that say which cell it is and what else was measured."""

Cell = tuple[str, ...]
Row = dict[str, str]


def arguments(description: str | None, *, seeds: str, work: str) -> argparse.ArgumentParser:
    """Return a parser of the options that all have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("outputs") / work)
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="run cells of the CSV again")
    return parser


def trained(cell: Cell, overrides: Sequence[str], options: argparse.Namespace) -> Path | None:
    """Train a cell, or go on with it, and return its folder; None if it failed."""
    folder = Path(options.work) / "-".join(re.sub(r"\W+", "_", word) for word in cell)
    if not (folder / "summary.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "commit").write_text(commit())
        with (folder / "output.txt").open("w") as output:
            subprocess.run(
                [
                    *(sys.executable, "-m", "recemb", "train", *overrides),
                    *(f"paths.run={folder}", f"paths.cache={options.work}/cache"),
                    *("logger=none", "progress=false", f"trainer.num_threads={options.threads}"),
                ],
                check=False,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
    if not (folder / "summary.json").exists():
        print(*cell, (folder / "output.txt").read_text(), flush=True)
        return None
    return folder


def measured(folder: Path) -> Row:
    """Return the columns MEASURED of a run."""
    summary = json.loads((folder / "summary.json").read_text())
    metrics = summary["metrics"]
    values = (
        *(metrics["val/auc"], metrics["test/auc"], metrics["test/gauc"]),
        *(metrics["test/logloss"], summary["best_step"], summary["bytes"]["serve"]),
        *(round(summary["samples_per_second"]), (folder / "commit").read_text()),
        *(summary["versions"]["torch"], summary["hardware"]["cpu"], summary["hardware"]["threads"]),
    )
    return dict(zip(MEASURED, map(str, values), strict=True))


def read_rows(name: str, keys: Sequence[str]) -> dict[Cell, Row]:
    """Return the rows of earlier runs by what the columns `keys` say."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {tuple(row[key] for key in keys): row for row in csv.DictReader(file)}


def write_results(name: str, rows: dict[Cell, Row], lines: Iterable[str]) -> str:
    """Write results/NAME.csv and, of `lines`, NAME.md; return the latter."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(next(iter(rows.values()))), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[cell] for cell in sorted(rows))
    text = "\n".join(lines) + "\n"
    (RESULTS / f"{name}.md").write_text(text)
    return text


def mean_and_sd(values: Sequence[float], digits: int = 4) -> str:
    """Return them as the tables have them."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(map(str, row)) + " |" for row in rows),
    ]
