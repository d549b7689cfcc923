"""Lookup, and lookup with backward pass and update, against FBGEMM, torch and Inductor on a CPU.

    python benchmarks/kernels/tables.py [--quick | --full] [--threads 2] [--rounds 3] [--filter D16]

Before anything is timed, every contender's vectors, and the rows after one update, are compared
with recemb's torch backend; a contender that differs is reported as wrong and not timed. Contenders
take turns within a round, so that a busy machine slows all of them alike; the ratio to recemb is
taken within a round. Rows go to benchmarks/results/tables_cpu.{csv,md}.
"""

import argparse
import csv
import gc
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))

from case import NUM_BATCHES, Case
from contestants import CONTENDERS, Contender, truth
from machine import context

RESULTS = Path(__file__).resolve().parents[1] / "results"
FIELDS = [
    "case",
    "contender",
    "operation",
    "milliseconds",
    "p20",
    "p80",
    "ratio",
    "ratio_p20",
    "ratio_p80",
    "logical_gb_per_second",
    "unique_gb_per_second",
    "copy_share",
    "note",
]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of each round."""

    seconds: list[float]

    def quantile(self, q: int) -> float:
        """Return a percentile, in seconds."""
        if len(self.seconds) == 1:
            return self.seconds[0]
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[q - 1]


def cases(*, quick: bool, full: bool) -> Iterator[Case]:
    """Yield the cases: with `full` all of the grid that fits into 24 GB, else its corners."""
    if quick:
        yield Case(batch_size=512, length=1, width=16)
        yield Case(batch_size=512, length=3, width=16, is_shared=True, is_hashed=True)
        return
    for length, width, is_zipf, is_shared in itertools.product(
        (1, 20), (16, 64, 128), (True, False), (False, True)
    ):
        named: dict[str, Any] = {"length": length, "width": width, "is_zipf": is_zipf}
        yield Case(batch_size=4096, is_shared=is_shared, **named)
        if full or (is_zipf and width < 128):
            yield Case(batch_size=4096, is_shared=is_shared, is_hashed=True, **named)
        if full or (is_zipf and width < 128 and not is_shared):
            yield Case(batch_size=4096, is_shared=is_shared, dtype="float16", **named)
        # Beyond this the gradient alone does not fit beside the tables.
        if length * width <= 64 and (full or is_zipf):
            yield Case(batch_size=65536, is_shared=is_shared, **named)


def copy_ceiling() -> float:
    """Return GB/s, read and written, of copying 256 MB, the best of five."""
    source = torch.ones(32 * 1024 * 1024)
    target = torch.empty_like(source)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best / 1e9


def measure(
    runs: dict[str, Callable[[int], None]], rounds: int
) -> tuple[dict[str, Timing], dict[str, list[float]]]:
    """Return the seconds of each contender, and its ratio to the first one pass by pass."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for run in runs.values():
        run(0)
    for turn in range(rounds * NUM_BATCHES):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            runs[name](turn % NUM_BATCHES)
            seconds[name].append(time.perf_counter() - start)
    ours = seconds[names[0]]
    ratios = {n: [o / t for o, t in zip(ours, ts, strict=True)] for n, ts in seconds.items()}
    return {n: Timing(seconds=ts) for n, ts in seconds.items()}, ratios


def check(case: Case, contender: Contender, expected: tuple[Tensor, Tensor]) -> str:
    """Return why `contender` is wrong; empty if it agrees with the truth, also after a step."""
    tolerance = {"rtol": 2e-3, "atol": 2e-3} if case.dtype != "float32" else {}
    before, after = expected
    try:
        torch.testing.assert_close(contender.forward(0).detach(), before, **tolerance)
        if contender.trains:
            contender.step(0)
            moved = contender.forward(0).detach()
            torch.testing.assert_close(moved, after, rtol=1e-3, atol=1e-3)
    except AssertionError as error:
        return "wrong: " + str(error).splitlines()[0]
    return ""


def run_case(case: Case, rounds: int, ceiling: float, only: str = "") -> list[dict[str, object]]:
    """Return the rows of one case."""
    made: dict[str, Contender] = {}
    expected = truth(case)
    rows: list[dict[str, object]] = []
    for make in CONTENDERS:
        contender = make(case)
        if contender is None or (only and contender.name not in only.split(",")):
            continue
        note = check(case, contender, expected)
        if note:
            rows.append({"case": str(case), "contender": contender.name, "note": note})
        else:
            made[contender.name] = contender
    operations = {
        "forward": {n: c.timed_forward for n, c in made.items()},
        "forward+backward+update": {n: c.step for n, c in made.items() if c.trains},
    }
    for operation, runs in operations.items():
        if not runs:
            continue
        timings, ratios = measure(runs, rounds)
        logical, unique = case.moved_bytes(operation != "forward")
        for name, timing in timings.items():
            spread = Timing(seconds=ratios[name])
            median = timing.quantile(50)
            rows.append(
                {
                    "case": str(case),
                    "contender": name,
                    "operation": operation,
                    "milliseconds": round(median * 1e3, 3),
                    "p20": round(timing.quantile(20) * 1e3, 3),
                    "p80": round(timing.quantile(80) * 1e3, 3),
                    "ratio": round(spread.quantile(50), 3),
                    "ratio_p20": round(spread.quantile(20), 3),
                    "ratio_p80": round(spread.quantile(80), 3),
                    "logical_gb_per_second": round(logical / median / 1e9, 2),
                    "unique_gb_per_second": round(unique / median / 1e9, 2),
                    "copy_share": round(unique / median / 1e9 / ceiling, 3),
                    "note": made[name].note,
                }
            )
    return rows


def write(rows: list[dict[str, object]], about: dict[str, object]) -> None:
    """Write the CSV and the table."""
    with (RESULTS / "tables_cpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*FIELDS, *about])
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
    lines = [
        "# Lookup and update on a CPU",
        "",
        "Written by `python benchmarks/kernels/tables.py`; do not edit. What is measured, and how:",
        "[benchmarks/README.md](../README.md).",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        "",
        "Ratio: recemb's time over the contender's, in the same round; above 1 the contender is "
        "faster.",
        "",
        "| " + " | ".join(FIELDS) + " |",
        "|" + "---|" * len(FIELDS),
    ]
    lines += ["| " + " | ".join(str(row.get(f, "")) for f in FIELDS) + " |" for row in rows]
    (RESULTS / "tables_cpu.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small cases: does it run?")
    parser.add_argument("--full", action="store_true", help="the whole grid, some hours")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--filter", default="", help="cases whose name has this in it")
    parser.add_argument("--only", default="", help="contenders, joined by commas; prints only")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ceiling = copy_ceiling()
    about: dict[str, object] = {
        **context(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "seed": 0,
        "copy_gb_per_second": round(ceiling, 1),
    }
    rows: list[dict[str, object]] = []
    for case in cases(quick=arguments.quick, full=arguments.full):
        if arguments.filter not in str(case):
            continue
        for row in run_case(case, arguments.rounds, ceiling, arguments.only):
            rows.append(row)
            print(*(row.get(f, "") for f in FIELDS), sep="\t", flush=True)
        gc.collect()
        if not (arguments.quick or arguments.no_write or arguments.filter or arguments.only):
            write(rows, about)


if __name__ == "__main__":
    main()
