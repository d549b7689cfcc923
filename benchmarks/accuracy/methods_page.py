"""The results of `methods.py`: a row for each run, and a page with what must hold."""

import csv
import statistics
from pathlib import Path

from methods_notes import NOTES

RESULTS = Path(__file__).parent.parent / "results"
TITLES = {"frappe": "Frappe", "synthetic": "generated, Criteo-shaped data"}
FULL, HASH = "full", "hash"
Row = dict[str, str]
Cell = tuple[str, str]
"""A method, and a budget as it stands in the rows."""
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


def with_earlier(study: str, rows: list[Row]) -> list[Row]:
    """Return the rows, and those of the results whose cell and seed are not among them."""
    found = {(row["method"], row["budget"], row["seed"]): row for row in rows}
    for row in read_csv(RESULTS / f"methods_{study}.csv"):
        found.setdefault((row["method"], row["budget"], row["seed"]), row)
    return list(found.values())


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a file, none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
