"""What the compiler makes of every kernel, for GPUs that need not be there.

    python benchmarks/kernels/aot.py [--out FOLDER] [--kernel NAME ..]

Compiles the cases of every folder of kernels for sm_80, sm_90 and gfx942 and writes aot.{csv,md} to
benchmarks/results; with --kernel those of some folders, whose rows replace the earlier ones. It
says how a kernel was compiled, never how fast it runs. Needs torch and triton, no GPU. Exits with 1
if a case fails.
"""

import argparse
import csv
import dataclasses
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent / "gpu"))

from standalone import CHECKOUT, stand_in_for_the_package

RESULTS = Path(__file__).resolve().parents[1] / "results"
MADE_BY = ("commit", "triton", "torch")


def commit() -> str:
    """Return the commit, "+changes" with it if the kernels differ from it, or "unknown"."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        named = ["git", "-C", str(CHECKOUT), *words]
        return subprocess.run(named, capture_output=True, text=True, check=False)

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "kernels")
    except FileNotFoundError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def earlier(folder: Path, kernels: Sequence[str]) -> list[dict[str, object]]:
    """Return the rows of `folder` that are not of `kernels`."""
    path = folder / "aot.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file) if row["kernel"] not in kernels]


def write(reports: Sequence[Mapping[str, object]], folder: Path) -> None:
    """Write the reports, each with what it was made by, as CSV and as a table."""
    fields = [field for field in reports[0] if field not in MADE_BY]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "aot.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*fields, *MADE_BY], lineterminator="\n")
        writer.writeheader()
        writer.writerows(reports)
    failed = sum(bool(row["failure"]) for row in reports)
    lines = [
        "# What the compiler makes of the kernels",
        "",
        "Written by `python benchmarks/kernels/aot.py`; do not edit. Compiled ahead of time,",
        "without a GPU: nothing here says how fast a kernel runs. Wide loads and stores are the",
        "128-bit ones in the machine code.",
        "",
        *(f"- {key}: {', '.join(dict.fromkeys(str(r[key]) for r in reports))}" for key in MADE_BY),
        f"- {len(reports)} compilations, {failed} failed",
        "",
        "| " + " | ".join(fields) + " |",
        "|" + "---|" * len(fields),
    ]
    lines += ["| " + " | ".join(str(row[field]) for field in fields) + " |" for row in reports]
    (folder / "aot.md").write_text("\n".join(lines) + "\n")


def main() -> int:
    """Compile every case, write the tables and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of aot.{csv,md}")
    parser.add_argument("--kernel", action="append", help="folder; default: all")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise SystemExit("aot: unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    stand_in_for_the_package()
    from recemb.kernels import aot

    about = {
        "commit": commit(),
        "triton": importlib.metadata.version("triton"),
        "torch": importlib.metadata.version("torch"),
    }
    rows: list[dict[str, object]] = []
    names = aot.kernel_names()
    for kernel in arguments.kernel or names:
        for case in aot.cases_of(kernel):
            for target in aot.TARGETS:
                report = aot.compile_case(case, target, kernel=kernel)
                rows.append({**dataclasses.asdict(report), **about})
                print(kernel, case.name, target, report.failure or "ok", sep="\t", flush=True)
    if arguments.kernel:
        rows += earlier(arguments.out, arguments.kernel)
    rows.sort(key=lambda row: names.index(str(row["kernel"])))
    write(rows, arguments.out)
    return int(any(row["failure"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
