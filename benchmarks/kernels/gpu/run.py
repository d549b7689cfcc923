"""Kernels on a CUDA device, against torch, torch.compile and, where it imports, FBGEMM.

    python benchmarks/kernels/gpu/run.py [--quick] [--only NAME] [--out FOLDER]
    python benchmarks/kernels/gpu/run.py --dry-run      # all of the code, on a CPU, no figures

Needs torch and triton alone, and no installation. Every contender is checked before it is timed; a
wrong one gets a row that says so and no time. Rows go to FOLDER/kernels_gpu.{csv,md}, by default in
benchmarks/results; a dry run writes only if --out is given. See README.md in this folder.
"""

import argparse
import csv
import gc
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent))

from clock import Clock, Timing, copy_ceiling, gather_ceiling
from contenders import Contender, contenders, why_wrong
from gpu_case import NUM_BATCHES, Case, Data, dry_grid, grid, moved_bytes
from gpu_verdicts import Verdict, verdicts
from pairs import PAIRS, pair_cases, why_different
from standalone import CHECKOUT, stand_in_for_the_package

RESULTS = Path(__file__).resolve().parents[2] / "results"
FIELDS = [
    "case", "contender", "operation", "launch", "milliseconds", "p20", "p80",
    "logical_gb_per_second", "unique_gb_per_second", "copy_share", "gather_share", "row_bytes",
    "is_dram", "note",
]  # fmt: skip
DRY = "dry run"
Row = dict[str, Any]


class Ceilings:
    """GB/s of copying, and of gathering rows of each size, measured once."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.copy = copy_ceiling(clock)
        self._gather: dict[int, float | None] = {}

    def gather(self, row_bytes: int) -> float | None:
        """Return GB/s of gathering rows of `row_bytes`."""
        if row_bytes not in self._gather:
            self._gather[row_bytes] = gather_ceiling(self.clock, row_bytes)
        return self._gather[row_bytes]


def timed(
    row: Row, timing: Timing | None, moved: tuple[float, float] | None, ceilings: Ceilings
) -> Row:
    """Return `row` with its times, or with the words "dry run" in their place."""
    if timing is None:
        return {**row, "milliseconds": DRY, "p20": DRY, "p80": DRY}
    median, p20, p80 = (timing.quantile(q) for q in (50, 20, 80))
    row = {**row, "milliseconds": round(median, 5), "p20": round(p20, 5), "p80": round(p80, 5)}
    if moved is None:
        return row
    logical, unique = (b / median / 1e6 for b in moved)
    copy, gather = ceilings.copy, ceilings.gather(row["row_bytes"])
    assert copy is not None
    assert gather is not None
    return {
        **row,
        "logical_gb_per_second": round(logical, 1),
        "unique_gb_per_second": round(unique, 1),
        "copy_share": round(unique / copy, 3),
        "gather_share": round(unique / gather, 3),
    }


def lookup_rows(case: Case, clock: Clock, ceilings: Ceilings, seed: int) -> Iterator[Row]:
    """Yield the rows of the plain lookup: every contender, operation and launch."""
    data = Data(case, clock.device, seed)
    num_unique = data.num_unique()
    base = {"case": str(case), "row_bytes": case.row_bytes,
            "is_dram": case.fewest_rows >= 4_000_000 and not case.is_zipf}  # fmt: skip
    for make in contenders():
        head = {**base, "contender": make.name}
        yield from _guarded(
            head, partial(_lookup, make, head, data, num_unique, clock, ceilings, seed)
        )
        _free()


def _lookup(
    make: type[Contender], head: Row, data: Data, num_unique: float, clock: Clock,
    ceilings: Ceilings, seed: int,
) -> Iterator[Row]:  # fmt: skip
    contender = make(data)
    wrong = why_wrong(data, contender, seed)
    if wrong:
        yield {**head, "operation": "all", "note": wrong}
        return

    def step(batch: int) -> None:
        contender.backward(batch, contender.forward(batch))

    forward = partial(_finish, contender.forward)
    operations = {"forward": (_nothing, forward, contender.forward)}
    if contender.trains:
        operations["backward+update"] = (contender.forward, contender.backward, None)
        whole = step if contender.captures_step else None
        operations["forward+backward+update"] = (_nothing, partial(_finish, step), whole)
    for operation, (begin, finish, whole) in operations.items():
        moved = moved_bytes(data.case, num_unique, operation)
        row = {**head, "operation": operation, "note": contender.note}
        eager = clock.eager(begin, finish, NUM_BATCHES)
        yield timed({**row, "launch": "eager"}, eager, moved, ceilings)
        if whole is not None:
            yield from _replayed(row, clock, whole, moved, ceilings)


def _nothing(batch: int) -> None:
    """Begin nothing."""


def _finish(run: Callable[[int], Any], batch: int, begun: None) -> Any:
    """Run what has not been begun."""
    return run(batch)


def _replayed(
    row: Row, clock: Clock, run: Callable[[int], Any], moved: tuple[float, float] | None,
    ceilings: Ceilings,
) -> Iterator[Row]:  # fmt: skip
    row = {**row, "launch": "graph"}
    try:
        timing = clock.graph(run, NUM_BATCHES)
    except RuntimeError as error:
        torch.cuda.synchronize()
        yield {**row, "note": f"cannot be captured: {_first_line(error)}"}
        return
    yield timed(row, timing, moved, ceilings)


def pair_rows(name: str, case: Case, clock: Clock, ceilings: Ceilings, seed: int) -> Iterator[Row]:
    """Yield the rows of a fused kernel and of its unfused form."""
    head: Row = {"case": str(case), "operation": "forward", "row_bytes": case.row_bytes}

    def rows() -> Iterator[Row]:
        pair = PAIRS[name](Data(case, clock.device, seed))
        wrong = why_different(pair, case.torch_dtype)
        if wrong:
            yield {**head, "contender": f"{name} fused", "note": wrong}
            return
        for side, run in (("fused", pair.fused), ("unfused", pair.unfused)):
            row = {**head, "contender": f"{name} {side}", "note": pair.note}
            eager = clock.eager(_nothing, partial(_finish, run), NUM_BATCHES)
            yield timed({**row, "launch": "eager"}, eager, None, ceilings)
            yield from _replayed(row, clock, run, None, ceilings)

    yield from _guarded({**head, "contender": f"{name} fused"}, rows)
    _free()


def _guarded(head: Row, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """Yield `rows`, and one that says why if they end early; the others must not be lost."""
    try:
        yield from rows()
    except torch.OutOfMemoryError:
        yield {**head, "note": "not measured: out of memory"}
    except Exception as error:  # a contender's, whatever it is: a row, and exit status 1
        yield {**head, "note": f"failed: {type(error).__name__}: {_first_line(error)}"}


def measure(arguments: argparse.Namespace, clock: Clock, ceilings: Ceilings) -> Iterator[Row]:
    """Yield all rows that the command line asks for."""
    dry = clock.device == "cpu"
    if arguments.only in ("", "lookup"):
        for case in dry_grid() if dry else grid(quick=arguments.quick):
            yield from _guarded(
                {"case": str(case), "contender": "all"},
                partial(lookup_rows, case, clock, ceilings, arguments.seed),
            )
    for name in PAIRS:
        if arguments.only in ("", name):
            for case in pair_cases(name, quick=arguments.quick, dry=dry):
                yield from pair_rows(name, case, clock, ceilings, arguments.seed)


def context(arguments: argparse.Namespace, ceilings: Ceilings) -> dict[str, object]:
    """Return what every row carries: commit, versions, device, seed and ceilings."""
    is_dry = ceilings.copy is None
    about: dict[str, object] = {
        "commit": arguments.commit or _commit(),
        "gpu": "none (dry run)" if is_dry else torch.cuda.get_device_name(),
        "python": sys.version.split()[0],
        **{name: _version(name) for name in ("torch", "triton", "fbgemm-gpu")},
        "cuda": torch.version.cuda or "none",
        "seed": arguments.seed,
        "repeats": ceilings.clock.repeats,
        "copy_gb_per_second": DRY if is_dry else round(ceilings.copy or 0.0, 1),
    }
    return about


def write(
    rows: Sequence[Row], judged: Sequence[Verdict], about: Mapping[str, object], folder: Path
) -> None:
    """Write the CSV, and the table with the verdicts above it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "kernels_gpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*FIELDS, *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
    lines = [
        "# Kernels on a GPU",
        "",
        "Written by `python benchmarks/kernels/gpu/run.py`; do not edit. What is measured:",
        "[benchmarks/kernels/gpu/README.md](../kernels/gpu/README.md).",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        "",
        *_table(["bound", "limit", "verdict", "figure", "where"], [asdict(v) for v in judged]),
        "",
        *_table(FIELDS, rows),
    ]
    (folder / "kernels_gpu.md").write_text("\n".join(lines) + "\n")


def _table(fields: Sequence[str], rows: Sequence[Mapping[str, object]]) -> list[str]:
    lines = ["| " + " | ".join(fields) + " |", "|" + "---|" * len(fields)]
    for row in rows:
        cells = ["" if row.get(f) is None else str(row.get(f)).replace("|", "/") for f in fields]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _commit() -> str:
    """Return the commit from git, or from the variable RECEMB_COMMIT where git is not there."""
    try:
        words = ["git", "-C", str(CHECKOUT), "describe", "--always", "--abbrev=12", "--dirty"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return os.environ.get("RECEMB_COMMIT", "unknown")
    return done.stdout.strip() or os.environ.get("RECEMB_COMMIT", "unknown")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(words: Sequence[str] | None = None) -> int:
    """Measure, write and return the exit status: 1 if a contender was wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one batch size and one width")
    parser.add_argument("--only", default="", choices=["", "lookup", *PAIRS])
    parser.add_argument("--out", type=Path, help="folder; default benchmarks/results")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU, no figures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--commit", default="", help="where git is not there")
    arguments = parser.parse_args(words)
    if not arguments.dry_run and not torch.cuda.is_available():
        raise SystemExit(
            "kernels/gpu/run.py: needs a CUDA device, and torch finds none; run it on a machine "
            "with one, or use --dry-run to try the code"
        )
    stand_in_for_the_package()
    clock = Clock(device="cpu" if arguments.dry_run else "cuda", repeats=arguments.repeats)
    ceilings = Ceilings(clock)
    about = context(arguments, ceilings)
    folder = arguments.out or (None if arguments.dry_run else RESULTS)
    rows: list[Row] = []
    for row in measure(arguments, clock, ceilings):
        rows.append(row)
        print(*(row.get(f, "") for f in FIELDS), sep="\t", flush=True)
        if folder is not None and not arguments.dry_run:
            write(rows, verdicts(rows), about, folder)
    judged = verdicts(rows)
    for verdict in judged:
        print(*asdict(verdict).values(), sep="\t")
    if folder is not None:
        write(rows, judged, about, folder)
    return int(any(str(row.get("note", "")).startswith(("wrong", "failed")) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
