"""The training step of recemb against other libraries, in one interleaved run.

    python benchmarks/training/compare.py            # all cases; half an hour on two idle cores
    python benchmarks/training/compare.py --quick    # small tables, few rounds: does it work?

Peers are installed into environments of their own under `.cache/bench` at the first run.
`benchmarks/README.md` says what is measured and what is left out.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from click_data import ClickData, Table, generate
from contenders import CONTENDERS, REFERENCE
from environment import python_of
from machine import context
from report import Group, document, rows_of, table, to_csv
from rounds import Measurement, Schedule, measure, waves
from session import Contender
from task import MODELS, ModelName, Task
from verdicts import Case, Verdict, judge

_ROOT = Path(__file__).resolve().parents[2]
_NUM_TEST = 65_536
_LARGE = 1_000_000
_SCHEDULES = {
    # Dense optimizers take seconds per step over large tables; everybody gets the same steps.
    "small": Schedule(warmup=10, rounds=10, steps=12),
    "large": Schedule(warmup=4, rounds=6, steps=4),
    "quick": Schedule(warmup=3, rounds=3, steps=3),
}
_NO_BF16 = "not measured: no bf16 on this CPU"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", nargs="+", type=int, default=[100_000, _LARGE])
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="rounds of every case")
    parser.add_argument("--steps", type=int, help="steps of each contender in a round")
    parser.add_argument("--warmup", type=int, help="steps before the first round")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders to run")
    parser.add_argument("--skip", nargs="+", metavar="NAME", default=[], help="ones to leave out")
    parser.add_argument("--quick", action="store_true", help="10,000 rows, three short rounds")
    parser.add_argument("--cache", type=Path, default=_ROOT / ".cache" / "bench")
    parser.add_argument("--out", type=Path, default=_ROOT / "benchmarks/results/training_step")
    options = parser.parse_args(arguments)
    known = {c.name for c in CONTENDERS}
    if unknown := sorted({*(options.only or []), *options.skip} - known):
        parser.error(f"there is no contender {unknown}; the contenders are {sorted(known)}")
    if options.quick:
        options.rows = [10_000]
        options.out = options.out.with_name(options.out.name + "_quick")
    return options


def chosen(options: argparse.Namespace, model: ModelName) -> list[Contender]:
    """Return the contenders to run on `model`; the reference is always among them."""
    names = set(options.only or [c.name for c in CONTENDERS]) - set(options.skip)
    return [
        c
        for c in CONTENDERS
        if c == REFERENCE
        or (c.name in names and model in c.models and (not c.needs_bf16 or _has_bf16()))
    ]


def run_case(options: argparse.Namespace, model: ModelName, num_embeddings: int) -> Group:
    """Return the measurements of one model over tables of one size."""
    schedule = _schedule(options, num_embeddings)
    data = ClickData(
        num_embeddings=num_embeddings,
        num_train=schedule.total_steps * options.batch_size,
        num_test=_NUM_TEST,
        seed=options.seed,
    )
    folder = generate(data, options.cache)
    task = Task(
        model=model,
        num_embeddings=num_embeddings,
        batch_size=options.batch_size,
        seed=options.seed,
        num_threads=options.threads,
        data=str(folder),
    )
    contenders = chosen(options, model)
    pythons = {
        c.name: Path(sys.executable)
        if c.environment is None
        else python_of(c.environment, options.cache)
        for c in contenders
    }
    found: dict[str, Measurement] = {}
    groups = waves(contenders, REFERENCE, task)
    for number, wave in enumerate(groups):
        names = ", ".join(c.name for c in wave)
        print(f"{model}, {num_embeddings:,} rows, wave {number + 1}/{len(groups)}: {names}")
        log = options.cache / "worker.log"
        for result in measure(wave, REFERENCE, task, schedule, pythons, log):
            found.setdefault(result.contender.name, result)
    measurements = [
        found.get(c.name) or Measurement(contender=c, note=_why_not(c, model))
        for c in CONTENDERS
        if c.name in found or (options.only is None and c.name not in options.skip)
    ]
    return Group(task=task, schedule=schedule, facts=Table(folder).facts, measurements=measurements)


def main(arguments: Sequence[str]) -> None:
    """Run all cases, print their tables, and write them after each case."""
    options = parse(arguments)
    if shutil.which("g++") is None:
        print("no C++ compiler: torch.compile will fail; install g++", file=sys.stderr)
    facts = context()
    groups: list[Group] = []
    verdicts: list[Verdict] = []
    for num_embeddings in options.rows:
        for model in options.models:
            group = run_case(options, model, num_embeddings)
            groups.append(group)
            verdicts += judge(
                Case(
                    model=model,
                    num_embeddings=num_embeddings,
                    batch_size=options.batch_size,
                    found=group.measurements,
                )
            )
            print("\n" + table(group) + "\n", flush=True)
            rows = [row for g in groups for row in rows_of(g, facts)]
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.with_suffix(".csv").write_text(to_csv(rows))
            options.out.with_suffix(".md").write_text(document(groups, verdicts, facts))
    print("\n".join(verdict.line() for verdict in verdicts))
    print(f"written to {options.out}.csv and .md")


def _schedule(options: argparse.Namespace, num_embeddings: int) -> Schedule:
    size = "large" if num_embeddings >= _LARGE else "small"
    base = _SCHEDULES["quick" if options.quick else size]
    return Schedule(
        warmup=base.warmup if options.warmup is None else options.warmup,
        rounds=base.rounds if options.rounds is None else options.rounds,
        steps=base.steps if options.steps is None else options.steps,
    )


def _why_not(contender: Contender, model: ModelName) -> str:
    if model not in contender.models:
        return f"has no {model}"
    return _NO_BF16 if contender.needs_bf16 else "left out"


def _has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


if __name__ == "__main__":
    main(sys.argv[1:])
