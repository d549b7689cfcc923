"""What the compiler makes of every kernel, for GPUs that need not be there.

    python benchmarks/kernels/aot.py [--out FOLDER]

Compiles the cases of every folder of kernels for sm_80, sm_90 and gfx942 and writes aot.{csv,md} to
benchmarks/results. It says how a kernel was compiled, never how fast it runs. Needs torch and
triton, no GPU. Exits with 1 if a case fails.
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


def commit() -> str:
    """Return the commit, "+changes" with it if the kernels differ from it, or "unknown"."""
    words = ("git", "-C", str(CHECKOUT))
    named = {"capture_output": True, "text": True, "check": False}
    try:
        head = subprocess.run([*words, "rev-parse", "--short=12", "HEAD"], **named)  # type: ignore[call-overload]
        changed = subprocess.run([*words, "status", "--porcelain", "kernels"], **named)  # type: ignore[call-overload]
    except FileNotFoundError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return str(head.stdout).strip() + ("+changes" if changed.stdout.strip() else "")


def write(
    reports: Sequence[Mapping[str, object]], about: Mapping[str, object], folder: Path
) -> None:
    """Write the reports as CSV and as a table."""
    fields = list(reports[0])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "aot.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*fields, *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in reports)
    failed = sum(bool(row["failure"]) for row in reports)
    lines = [
        "# What the compiler makes of the kernels",
        "",
        "Written by `python benchmarks/kernels/aot.py`; do not edit. Compiled ahead of time,",
        "without a GPU: nothing here says how fast a kernel runs. Wide loads and stores are the",
        "128-bit ones in the machine code.",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        f"- {len(reports)} compilations, {failed} failed",
        "",
        "| " + " | ".join(fields) + " |",
        "|" + "---|" * len(fields),
    ]
    lines += ["| " + " | ".join(str(v) for v in row.values()) + " |" for row in reports]
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
    for kernel in arguments.kernel or aot.kernel_names():
        for case in aot.cases_of(kernel):
            for target in aot.TARGETS:
                report = aot.compile_case(case, target, kernel=kernel)
                rows.append(dataclasses.asdict(report))
                print(kernel, case.name, target, report.failure or "ok", sep="\t", flush=True)
    write(rows, about, arguments.out)
    return int(any(row["failure"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
