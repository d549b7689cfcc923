"""What a batch from prepared data costs, beside copying the same rows out of memory.

    python benchmarks/data/batches.py                          # a million rows, 4096 in a batch
    python benchmarks/data/batches.py --rows 200000 --batch-size 1024

Columns are Criteo's: 26 ids, 13 floats, a label. Each row of the table is the median and the 20th
and 80th percentile of the milliseconds per batch. "in memory" gathers the same rows from arrays in
memory and builds the same tensors: no reader can do better without a change of layout.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from recemb.data.batch import Batch
from recemb.data.order import RowOrder
from recemb.data.prepared import Prepared
from recemb.data.synthetic import Synthetic


def seconds_per_batch(batches: Iterator[object]) -> list[float]:
    """Return how long each item took to come."""
    found = []
    before = time.perf_counter()
    for _ in batches:
        now = time.perf_counter()
        found.append(now - before)
        before = now
    return found


def in_memory(prepared: Prepared, batch_size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the tensors of each batch from arrays in memory."""
    whole = next(prepared.batches("train", batch_size=prepared.num_rows("train")))
    ids = whole.features.values().view(26, -1).T.contiguous().to(torch.int32).numpy()
    dense, labels = whole.dense.numpy(), whole.labels.numpy()
    order = RowOrder(len(labels))
    for start in range(0, len(labels) - batch_size, batch_size):
        rows = order.rows(start, start + batch_size)
        picked = np.ascontiguousarray(ids[rows].T).astype(np.int64)
        yield (
            torch.from_numpy(picked),
            torch.from_numpy(dense[rows]),
            torch.from_numpy(labels[rows]),
        )


def report(name: str, make: Callable[[], Iterator[object]], rounds: int) -> None:
    """Print one row of the table."""
    found = [s for _ in range(rounds) for s in seconds_per_batch(make())[2:]]
    low, middle, high = (1e3 * q for q in np.quantile(found, (0.2, 0.5, 0.8)))
    print(f"| {name} | {middle:.3f} | {low:.3f} | {high:.3f} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Synthetic(num_train=options.rows, num_val=1000, num_test=1000)
        prepared = data.prepare(Path(), Path(folder) / "set")

        def ours(*, shuffle: bool, prefetch: int) -> Iterator[Batch]:
            return prepared.batches(
                "train", batch_size=options.batch_size, shuffle=shuffle, prefetch=prefetch
            )

        print(f"{options.rows} rows, {options.batch_size} in a batch, milliseconds per batch")
        print("| reader | median | 20 % | 80 % |\n|---|---|---|---|")
        report("in memory, shuffled", lambda: in_memory(prepared, options.batch_size), 1)
        for shuffle in (False, True):
            for prefetch in (0, 2):
                name = f"prepared, {'shuffled' if shuffle else 'in order'}, prefetch {prefetch}"
                report(
                    name, lambda s=shuffle, p=prefetch: ours(shuffle=s, prefetch=p), options.rounds
                )


if __name__ == "__main__":
    main()
