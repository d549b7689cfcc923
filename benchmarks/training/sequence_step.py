"""Training samples a second of DARE, against dense Adam over all rows of `nn.Embedding`.

    python benchmarks/training/sequence_step.py [--items 1000000] [--batches 2048,256] [--quick]

Histories of 200, vectors of 16, the 20 best, both heads, Adam for the dense part: the settings of
the released code of Feng et al., ICLR 2025. Each contender runs in two processes, one of which
keeps the memory that it frees. All take turns; ratios are taken within a round. Writes
benchmarks/results/sequence_step.{csv,md}.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

import torch
from sequence_published import PublishedDARE
from sequence_turns import (
    Row,
    draw_batch,
    sequence_schema,
    spread,
    write_tables,
)
from torch import nn

from recemb.data.batch import Batch
from recemb.data.schema import Schema
from recemb.models.sequence.dare import DARE
from recemb.tables.full import full_tables
from recemb.tables.optimizer import Kind, TableOptimizer
from recemb.train.freed_memory import keep_freed_memory

WIDTH = 16
SEED = 0
PUBLISHED = "nn.Embedding, dense Adam, as published"
CLAIM = 5.0
Step = Callable[[Batch], None]
DENSE = "recemb's model, dense Adam"
ROW_SPARSE: dict[str, Kind] = {
    "recemb, row-sparse Adam": "adam",
    "recemb, row-wise Adagrad": "rowwise_adagrad",
}
CONTENDERS = (PUBLISHED, DENSE, *ROW_SPARSE)
FREED, KEPT = "freed", "kept"
NUM_BATCHES = 4


def contenders(schema: Schema) -> Iterator[tuple[str, Step]]:
    """Yield the training step of each contender."""
    torch.manual_seed(SEED)
    published = PublishedDARE(schema, dim=WIDTH)
    yield PUBLISHED, _step(published.loss, published.parameters(), is_fused=False)
    for name, kind in {DENSE: None, **ROW_SPARSE}.items():
        options = {"l2": 1e-6, "init_std": 0.01}
        specs = DARE.table_specs(schema, embedding_dim=WIDTH, options=options)
        optimizer = None if kind is None else TableOptimizer(kind=kind, learning_rate=0.01)
        tables = full_tables(specs, optimizer=optimizer, init_std=0.01, seed=SEED)
        torch.manual_seed(SEED)
        model = DARE.for_tables(schema, tables, options)

        def loss(batch: Batch, model: DARE = model, tables: nn.Module = tables) -> torch.Tensor:
            return model.loss_sum(model.inputs(batch, tables), batch.labels) / len(batch)

        parameters = [*model.parameters(), *tables.dense_parameters()]
        yield name, _step(loss, parameters, is_fused=True)


def _step(loss: Callable[[Batch], torch.Tensor], parameters: object, *, is_fused: bool) -> Step:
    """Return an update; the published way leaves Adam's options as they are by default."""
    optimizer = torch.optim.Adam(parameters, lr=0.01, fused=is_fused or None)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    return step


class Worker:
    """A process of its own that holds all contenders; malloc's settings are those of a process.

    Args:
        memory: KEPT or FREED.
        items: rows of the table of items.
        batches: sizes of batches.
        length: of histories.
        threads: of torch.
    """

    def __init__(
        self, memory: str, items: int, batches: Sequence[int], length: int, threads: int
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, memory, items, tuple(batches), length, threads), daemon=True
        )
        self._process.start()

    def step(self, name: str, batch_size: int, turn: int) -> float:
        """Return the seconds of an update."""
        self._pipe.send((name, batch_size, turn))
        seconds: float = self._pipe.recv()
        return seconds

    def peak_bytes(self) -> int:
        """Return the most memory that the process has held."""
        self._pipe.send(None)
        found: int = self._pipe.recv()
        return found


def _work(
    pipe: Connection, memory: str, items: int, sizes: Sequence[int], length: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    if memory == KEPT and not keep_freed_memory():
        raise RuntimeError("this C library's malloc has no such setting")
    schema = sequence_schema(items, length)
    steps = dict(contenders(schema))
    batches = {
        s: [draw_batch(schema, s, length, seed) for seed in range(NUM_BATCHES)] for s in sizes
    }
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        if asked is None:
            pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            continue
        name, size, turn = asked
        start = time.perf_counter()
        steps[name](batches[size][turn % NUM_BATCHES])
        pipe.send(time.perf_counter() - start)


def rows_of(workers: dict[str, Worker], batch_size: int, rounds: int, about: Row) -> Iterator[Row]:
    """Yield a row for each contender, with memory freed and kept."""
    cells = [(memory, name) for memory in workers for name in CONTENDERS]
    seconds: dict[tuple[str, str], list[float]] = {cell: [] for cell in cells}
    for turn in range(-1, rounds):
        first = turn % len(cells)
        for memory, name in cells[first:] + cells[:first]:
            found = workers[memory].step(name, batch_size, turn)
            if turn >= 0:
                seconds[memory, name].append(found)
    for (memory, name), its in seconds.items():
        yield {
            **about,
            "batch": batch_size,
            "contender": name,
            "memory": memory,
            **{f"samples/s {n}": v for n, v in spread([batch_size / s for s in its], 0).items()},
            **_ratios("times published", seconds[FREED, PUBLISHED], its),
            **_ratios("times published, kept", seconds[KEPT, PUBLISHED], its),
            "rounds": rounds,
            "seed": SEED,
        }


def _ratios(name: str, published: Sequence[float], its: Sequence[float]) -> Row:
    ratios = [one / mine for one, mine in zip(published, its, strict=True)]
    return {f"{name} {n}": v for n, v in spread(ratios, 2).items()}


def verdicts(rows: list[Row]) -> list[Row]:
    """Return whether the claim holds, case by case, and what is left of it on equal memory."""
    claims = {
        "times published": "the published way's",
        "times published, kept": "those of the published way with recemb's memory (not claimed)",
    }
    return [
        {
            "batch": row["batch"],
            "length": row["length"],
            "contender": row["contender"],
            "claim": f"at least {CLAIM:g} times {whose} samples a second",
            "measured": row[f"{column} median"],
            "holds": "yes" if row[f"{column} median"] >= CLAIM else "NO",
        }
        for row in rows
        for column, whose in claims.items()
        if row["contender"] in ROW_SPARSE and row["memory"] == KEPT
    ]


def main() -> None:
    """Measure every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, prints only")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--batches", default="2048,256")
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    length, num_items = (20, 10_000) if options.quick else (options.length, options.items)
    sizes = [64] if options.quick else [int(size) for size in options.batches.split(",")]
    torch.set_num_threads(options.threads)  # what the table says
    workers = {m: Worker(m, num_items, sizes, length, options.threads) for m in (FREED, KEPT)}
    rows: list[Row] = []
    about = {"device": "cpu", "items": num_items, "length": length}
    for batch_size in sizes:
        for row in rows_of(workers, batch_size, options.rounds, about):
            rows.append(row)
            print(*row.values(), sep="\t", flush=True)
    if options.quick:
        return
    notes = [
        "Written by `python benchmarks/training/sequence_step.py`; do not edit.",
        f"One update of DARE: {num_items:,} items, 9,408 categories, positions; histories of "
        f"{length}, vectors of {WIDTH} for each of the three and each role, the 20 best, main and "
        "auxiliary head, Adam for the dense part; batches made before the clock starts, items by "
        "Zipf's law. The released code's batch is 2,048. `as published` is "
        "[its procedure](../training/sequence_published.py) in plain torch, on this machine, with "
        "dense gradients of `nn.Embedding` and `torch.optim.Adam` over all rows; `recemb's model, "
        "dense Adam` differs from the row-sparse rows in the tables' optimizer alone. Row-sparse "
        "Adam leaves the moments of rows alone that a step does not touch, so it is another "
        "optimizer than dense Adam.",
        f"`{FREED}` is malloc as it comes, which maps large blocks anew in every step; `{KEPT}` is "
        "recemb's `trainer.keep_freed_memory`, its default on a CPU. The claim is of recemb as it "
        "comes against plain torch as it comes; the other ratio gives the published way recemb's "
        "setting, too. Each process holds the tables of all contenders; its peak was "
        + " and ".join(f"{w.peak_bytes() / 1e6:,.0f} MB ({m})" for m, w in workers.items())
        + ".",
    ]
    tables = {"Samples a second": rows, "The claim": verdicts(rows)}
    print(write_tables("sequence_step", "Training step of DARE", notes, tables))


if __name__ == "__main__":
    main()
