"""Checkpoints: writing and loading against the disk's own speed, and what training waits for.

python benchmarks/training/checkpoint.py [--rows 100000] [--rounds 7] [--folder FOLDER]

The state is that of 26 tables of 16 values with row-wise Adagrad. In each round every contender
takes a turn, the order rotating, so that a busy disk slows all of them; ratios are taken within a
round. Writing ends when the bytes are on the disk (fsync); before a load the file's pages are
dropped from the page cache, where the system allows it. The disk's own speed is that of a plain
write, and read, of as many bytes.

"train" is a loop of lookups and updates that takes about twice as long as a write, with a
checkpoint at its beginning: written before it goes on, or in the background, or none. What the last
has over the first is what a checkpoint costs.
"""

import argparse
import csv
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import context
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.checkpoint.background import BackgroundCheckpoints
from recemb.checkpoint.store import CheckpointName, CheckpointStore
from recemb.tables import TableOptimizer, TableSpec, full_tables
from recemb.tables.planned import PlannedTables

NUM_TABLES, WIDTH, BATCH_SIZE = 26, 16, 4096
BLOCK_BYTES = 1 << 24
NAME = CheckpointName("step", 1)
RESULTS = Path(__file__).resolve().parents[1] / "results"


def tables_of(num_rows: int) -> PlannedTables:
    """Return tables with row-wise Adagrad."""
    specs = [
        TableSpec(
            name=f"t{f}", num_embeddings=num_rows, embedding_dim=WIDTH, feature_names=(f"f{f}",)
        )
        for f in range(NUM_TABLES)
    ]
    return full_tables(specs, optimizer=TableOptimizer())


def num_bytes(state: Mapping[str, Any]) -> int:
    return sum(tensor.nbytes for tensor in state["tables"].values())


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def forget(folder: Path) -> None:
    """Drop the pages of files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


class Disk:
    """Bytes written and read as plainly as can be."""

    def __init__(self, folder: Path, state: Mapping[str, Any]) -> None:
        folder.mkdir()
        self.path = folder / "bytes"
        self._block = bytes(torch.randint(0, 256, (BLOCK_BYTES,), dtype=torch.uint8).numpy().data)
        self._num_bytes = num_bytes(state)

    def write(self) -> None:
        with self.path.open("wb") as file:
            for start in range(0, self._num_bytes, BLOCK_BYTES):
                file.write(self._block[: self._num_bytes - start])
        sync(self.path)

    def load(self) -> None:
        with self.path.open("rb", buffering=0) as file:
            while file.read(BLOCK_BYTES):
                pass


class Torch:
    """`torch.save` and a restricted `torch.load`, flushed, without checksums."""

    def __init__(self, folder: Path, state: Mapping[str, Any]) -> None:
        folder.mkdir()
        self.path, self._state = folder / "state.pt", state

    def write(self) -> None:
        torch.save(self._state, self.path)
        sync(self.path)

    def load(self) -> None:
        torch.load(self.path, weights_only=True)


class Recemb:
    """A checkpoint as the trainer writes it, and loads it, verified."""

    def __init__(self, folder: Path, state: Mapping[str, Any]) -> None:
        self.path = folder
        self.store, self._state = CheckpointStore(folder), state

    def write(self) -> None:
        self.store.save(NAME, self._state)

    def load(self) -> None:
        self.store.load(NAME)


class RecembBackground(Recemb):
    """What training waits for when checkpoints are written in the background: the copy."""

    def __init__(self, folder: Path, state: Mapping[str, Any]) -> None:
        super().__init__(folder, state)
        self._background = BackgroundCheckpoints(self.store)
        # The first save allocates the copy.
        self.write()
        self._background.finish()

    def write(self) -> None:
        self._background.save(NAME, self._state)

    def finish(self) -> None:
        """Wait, outside the clock."""
        self._background.finish()


class Training:
    """A loop of updates that begins with a save."""

    def __init__(self, tables: PlannedTables, *, seconds: float) -> None:
        num_rows = tables.specs[0].num_embeddings
        ids = torch.randint(num_rows, (NUM_TABLES * BATCH_SIZE,))
        names = [spec.name.replace("t", "f") for spec in tables.specs]
        self._tables = tables
        self._batch = KeyedJaggedTensor.from_lengths_sync(names, ids, torch.ones_like(ids))
        self._step()
        each = min(timed(self._step) for _ in range(5))
        self._num_steps = max(1, round(seconds / each))

    def run(self, save: Callable[[], None]) -> None:
        save()
        for _ in range(self._num_steps):
            self._step()

    def _step(self) -> None:
        self._tables(self._batch).values().sum().backward()


def measure(num_rows: int, num_rounds: int, folder: Path) -> list[dict[str, str]]:
    """Return a row for each contender and direction."""
    tables = tables_of(num_rows)
    state = {"tables": tables.state_dict()}
    background = RecembBackground(folder / "background", state)
    disk = Disk(folder / "disk", state)
    saved = Recemb(folder / "recemb", state)
    plain = Torch(folder / "torch", state)
    for contender in (disk, plain):
        contender.write()
    training = Training(tables, seconds=2 * timed(saved.write))
    runs: dict[tuple[str, str], Callable[[], None]] = {
        ("write", "disk"): disk.write,
        ("write", "torch.save"): plain.write,
        ("write", "recemb"): saved.write,
        ("write", "recemb, copy for the background"): background.write,
        ("load", "disk"): disk.load,
        ("load", "torch.load"): plain.load,
        ("load", "recemb"): saved.load,
        ("train", "no checkpoint"): lambda: training.run(lambda: None),
        ("train", "checkpoint"): lambda: training.run(saved.write),
        ("train", "checkpoint in the background"): lambda: training.run(background.write),
    }
    bases = {key[0]: key for key in reversed(runs)}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    order = list(runs)
    for turn in range(num_rounds):
        for key in order[turn % len(order) :] + order[: turn % len(order)]:
            forget(folder)
            times[key].append(timed(runs[key]))
            background.finish()
    size = num_bytes(state)
    return [row(key, times[key], times[bases[key[0]]], size) for key in runs]


def row(
    key: tuple[str, str], seconds: Sequence[float], base: Sequence[float], size: int
) -> dict[str, str]:
    ratios = sorted(mine / its for mine, its in zip(seconds, base, strict=True))
    low, high = ratios[len(ratios) // 5], ratios[-1 - len(ratios) // 5]
    middle = statistics.median(seconds)
    return {
        "direction": key[0],
        "what": key[1],
        "MB": f"{size / 1e6:.0f}",
        "seconds": f"{middle:.3f}",
        "MB/s": f"{size / 1e6 / middle:.0f}",
        "time over the first's": f"{statistics.median(ratios):.2f}",
        "20 %": f"{low:.2f}",
        "80 %": f"{high:.2f}",
    }


def write_results(rows: Sequence[Mapping[str, str]], facts: Mapping[str, str], out: Path) -> None:
    """Write the table as CSV and Markdown."""
    with (out / "checkpoint.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *facts])
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)
    lines = [
        "# Checkpoints",
        "",
        "Written by `benchmarks/training/checkpoint.py`; see its docstring for what is measured.",
        "Ratios are to the first row of the same direction, within a round.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *("| " + " | ".join(row.values()) + " |" for row in rows),
        "",
    ]
    (out / "checkpoint.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="of each of the 26 tables")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=options.folder))
    try:
        rows = measure(options.rows, options.rounds, folder)
    finally:
        shutil.rmtree(folder)
    facts = {**context(), "torch": torch.__version__, "rounds": str(options.rounds)}
    facts["threads"] = str(options.threads)
    write_results(rows, facts, options.out)
    print((options.out / "checkpoint.md").read_text())


if __name__ == "__main__":
    main()
