"""Reading and encoding a Criteo file: recemb against FuxiCTR, in interleaved runs.

    python benchmarks/data/compare_preprocessing.py              # a million rows, three rounds
    python benchmarks/data/compare_preprocessing.py --rows 20000 --rounds 1

Both build vocabularies from 80 % of the rows with the same minimum count and write train,
validation and test sets. FuxiCTR reads CSV files that are split already, recemb reads Criteo's own
file and splits it. Memory is that of all processes together (FuxiCTR's ray starts several),
shared pages counted once.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from raw_criteo import generate

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_POLL_SECONDS = 0.1
_MIN_COUNT = 10
_SPEED_TARGET, _MEMORY_TARGET_BYTES = 5.0, 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class Run:
    """One preparation.

    Attributes:
        wall_seconds: of the whole process, its start and imports included.
        seconds: of the preparation alone.
        peak_bytes: of the process and its children.
        num_ids: size of all vocabularies.
    """

    wall_seconds: float
    seconds: float
    peak_bytes: int
    num_ids: int


def run(command: Sequence[str]) -> Run:
    """Return what a preparation took.

    Raises:
        RuntimeError: if it fails, with the end of its output.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    meter = _Meter(process.pid)
    out, errors = process.communicate()
    wall = time.perf_counter() - started
    peak = meter.stop()
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not lines:
        raise RuntimeError(f"{' '.join(command)} failed:\n{out[-2000:]}\n{errors[-4000:]}")
    answer = json.loads(lines[-1].removeprefix("RESULT "))
    return Run(
        wall_seconds=wall,
        seconds=answer["seconds"],
        peak_bytes=peak,
        num_ids=answer["num_ids"],
    )


class _Meter:
    """Polls the memory of a process and of all that descend from it."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak = pid, 0
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Return the largest sum that was seen, in bytes."""
        self._is_done.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._is_done.wait(_POLL_SECONDS):
            self._peak = max(self._peak, sum(_bytes_of(p) for p in _family(self._pid)))


def _family(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                waiting += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


def _bytes_of(pid: int) -> int:
    """Return the proportional resident size, in which a shared page counts once in all."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def main(arguments: Sequence[str]) -> None:
    """Run the rounds, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=_ROOT / "benchmarks/results/preprocessing")
    options = parser.parse_args(arguments)
    cache = _ROOT / ".cache" / "bench"
    raw = cache / "criteo" / f"{options.rows}-{options.seed}"
    facts = json.loads(_python(_ROOT / "benchmarks/training/machine.py").strip())
    fuxictr = _python(_ROOT / "benchmarks/training/environment.py", "fuxictr").splitlines()[-1]
    print(f"generating {options.rows:,} rows in {raw}")
    generate(raw, options.rows, options.seed)
    found: dict[str, list[Run]] = {"recemb": [], "FuxiCTR": []}
    for number in range(options.rounds):
        for name in found:
            out = Path(tempfile.mkdtemp(prefix="prepared-", dir=cache))
            try:
                found[name].append(run(_command(name, fuxictr, raw, out)))
            finally:
                shutil.rmtree(out, ignore_errors=True)
            print(f"round {number + 1}/{options.rounds}: {name} {found[name][-1]}", flush=True)
    _write(options, found, facts)


def _command(name: str, fuxictr: str, raw: Path, out: Path) -> list[str]:
    if name == "recemb":
        script = [sys.executable, str(_HERE / "recemb_prepare.py"), str(raw / "train.txt")]
        return [*script, str(out / "prepared"), str(_MIN_COUNT)]
    return [fuxictr, str(_HERE / "fuxictr_prepare.py"), str(raw), str(out), str(_MIN_COUNT)]


def _python(script: Path, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, str(script), *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _write(options: argparse.Namespace, found: dict[str, list[Run]], facts: dict[str, str]) -> None:
    pairs = list(zip(found["recemb"], found["FuxiCTR"], strict=True))
    wall = [b.wall_seconds / a.wall_seconds for a, b in pairs]
    inner = [b.seconds / a.seconds for a, b in pairs]
    peak = max(r.peak_bytes for r in found["recemb"])
    lines = [
        "# Reading and encoding a Criteo file",
        "Written by `python benchmarks/data/compare_preprocessing.py`; do not edit.",
        "\n".join(f"- {k}: {v}" for k, v in (facts | {"rows": f"{options.rows:,}"}).items()),
        "\n".join(
            [
                "| | process s (p20 to p80) | preparation s (p20 to p80) | peak GB | ids |",
                "|---|---|---|---|---|",
                *(_line(name, runs) for name, runs in found.items()),
            ]
        ),
        "\n".join(
            [
                "| target | required | measured (p20 to p80) | |",
                "|---|---|---|---|",
                f"| FuxiCTR's preparation over recemb's | at least {_SPEED_TARGET:g} | "
                f"{_spread(inner)} | {_word(np.median(inner) >= _SPEED_TARGET)} |",
                f"| FuxiCTR's process over recemb's | at least {_SPEED_TARGET:g} | "
                f"{_spread(wall)} | {_word(np.median(wall) >= _SPEED_TARGET)} |",
                f"| recemb's peak memory, GB | below {_MEMORY_TARGET_BYTES / 1e9:g} | "
                f"{peak / 1e9:.2f} | {_word(peak < _MEMORY_TARGET_BYTES)} |",
            ]
        ),
    ]
    text = "\n\n".join(lines) + "\n"
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".md").write_text(text)
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["library", "round", "rows", *vars(pairs[0][0]), "seed", *facts])
        for name, runs in found.items():
            for number, one in enumerate(runs):
                values = vars(one).values()
                writer.writerow(
                    [name, number, options.rows, *values, options.seed, *facts.values()]
                )


def _line(name: str, runs: Sequence[Run]) -> str:
    return (
        f"| {name} | {_spread([r.wall_seconds for r in runs])} "
        f"| {_spread([r.seconds for r in runs])} "
        f"| {max(r.peak_bytes for r in runs) / 1e9:.2f} | {runs[-1].num_ids:,} |"
    )


def _spread(values: Sequence[float]) -> str:
    low, middle, high = np.percentile(values, [20, 50, 80])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _word(is_met: bool) -> str:
    return "met" if is_met else "NOT met"


if __name__ == "__main__":
    main(sys.argv[1:])
