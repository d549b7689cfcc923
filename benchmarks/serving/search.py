"""Latency of search in long histories: DARE at three attention widths, TWIN, ETA and SDIM.

    python benchmarks/serving/search.py [--quick] [--lengths 50,200,1000,10000] [--batches 1,64]
        [--device cuda]

Two times for each. `search`: from ids to what the K behaviours found count; for ETA and SDIM, which
have no first stage of their own in recemb, vectors are looked up and hashed. `score`: from a batch
to its logits. Contenders take turns; ratios are to DARE of full attention width, taken within a
round. Every contender's logits are first compared with those of its own slow path. Writes
benchmarks/results/search.{csv,md}, on a GPU search_cuda.{csv,md}.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))

import torch
from sequence_turns import Row, draw_batch, sequence_schema, spread, take_turns, write_tables

from recemb.data.batch import Batch
from recemb.data.schema import Schema
from recemb.models.sequence.dare import DARE
from recemb.models.sequence.eta import ETA
from recemb.models.sequence.inputs import Padding, ids_of
from recemb.models.sequence.retrieval import search
from recemb.models.sequence.sdim import SDIM
from recemb.models.sequence.sequence_model import SequenceModel
from recemb.models.sequence.twin import TWIN
from recemb.tables.full import full_tables
from recemb.tables.planned import PlannedTables

WIDTH = 128
FIRST = "DARE, full width"
SEED = 0
CALLS_SECONDS = 0.02  # a timed call repeats the work until it takes about so long
ROUNDING = {"rtol": 1e-3, "atol": 1e-4}  # sums of some hundred float32 products, otherwise ordered


@dataclass(frozen=True)
class Contender:
    """A model over its tables, in eval mode."""

    name: str
    width: int
    model: SequenceModel
    tables: PlannedTables

    def search(self, batch: Batch) -> Any:
        """Do the first stage."""
        if self.model.product_search() is None:
            return self.model.weights(self.model.inputs(batch, self.tables))
        lengths = batch.features[self.model.parts[0].history].lengths()
        ids = ids_of(batch, self.model.parts, Padding(lengths))
        k = self.model.product_search()
        assert k is not None
        return search(self.tables, self.model.parts, ids, lengths, k)

    def score(self, batch: Batch) -> torch.Tensor:
        """Return the logits."""
        return self.model.score(batch, self.tables)

    def check(self, batch: Batch) -> None:
        """Compare the logits with those of all vectors looked up."""
        slow = self.model.logits_of(self.model.inputs(batch, self.tables))
        torch.testing.assert_close(self.score(batch), slow, **ROUNDING)


def contenders(schema: Schema, width: int, device: torch.device) -> Iterator[Contender]:
    """Yield the contenders; TWIN, ETA and SDIM read one set of tables."""
    shared: PlannedTables | None = None
    for name, kind, attention in (
        (FIRST, DARE, width),
        ("DARE, half width", DARE, width // 2),
        ("DARE, quarter width", DARE, width // 4),
        ("TWIN", TWIN, width),
        ("ETA", ETA, width),
        ("SDIM", SDIM, width),
    ):
        options = {"attention_dim": attention} if kind is DARE else {}
        if kind is DARE or shared is None:
            specs = kind.table_specs(schema, embedding_dim=width, options=options)
            tables = full_tables(specs, seed=SEED, init_std=width**-0.25, device=device)
            shared = tables if kind is TWIN else None
        else:
            tables = shared
        torch.manual_seed(SEED)
        model = kind.for_tables(schema, tables, options).eval().to(device)
        yield Contender(name, attention, model, tables)


def rows_of(
    made: list[Contender], schema: Schema, length: int, batch_size: int, rounds: int
) -> Iterator[Row]:
    """Yield a row for each contender and operation."""
    device = next(made[0].model.parameters()).device
    batches = [draw_batch(schema, batch_size, length, seed).to(device) for seed in range(3)]
    for operation in ("search", "score"):
        runs = {c.name: getattr(c, operation) for c in made}
        calls = {name: _calls(run, batches[0]) for name, run in runs.items()}

        def repeated(name: str, turn: int, runs: Any = runs, calls: Any = calls) -> None:
            for call in range(calls[name]):
                runs[name](batches[(turn + call) % len(batches)])
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        timed = take_turns({n: lambda turn, n=n: repeated(n, turn) for n in runs}, rounds)
        seconds = {n: [s / calls[n] for s in its] for n, its in timed.items()}
        for contender in made:
            its = seconds[contender.name]
            ratios = [one / first for one, first in zip(its, seconds[FIRST], strict=True)]
            yield {
                "device": device.type,
                "length": length,
                "batch": batch_size,
                "operation": operation,
                "contender": contender.name,
                "attention width": contender.width,
                **{f"ms {n}": v for n, v in spread([1e3 * s for s in its], 3).items()},
                **{f"ratio {n}": v for n, v in spread(ratios, 3).items()},
                "rounds": rounds,
                "seed": SEED,
            }


def _calls(run: Callable[[Batch], Any], batch: Batch) -> int:
    """Return how many calls take about CALLS_SECONDS."""
    seconds: list[float] = []
    # The first call warms up.
    while len(seconds) < 2 and sum(seconds) < 1.0:
        start = time.perf_counter()
        run(batch)
        if batch.labels.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return max(1, round(CALLS_SECONDS / seconds[-1]))


def summary(rows: list[Row]) -> list[Row]:
    """Return the paper's claim, case by case: the search's time at a part of its width."""
    found = []
    for row in rows:
        if row["operation"] == "search" and row["contender"] == FIRST:
            case = {k: row[k] for k in ("device", "length", "batch")}
            its = {
                r["contender"]: r["ratio median"]
                for r in rows
                if r["operation"] == "search" and all(r[k] == v for k, v in case.items())
            }
            found.append({**case, **{n: v for n, v in its.items() if n != FIRST}})
    return found


def main() -> None:
    """Measure every case and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small tables, prints only")
    parser.add_argument("--lengths", default="50,200,1000,10000")
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    lengths = [int(n) for n in options.lengths.split(",")]
    num_items, width = (20_000, 32) if options.quick else (options.items, WIDTH)
    schema = sequence_schema(num_items, max(lengths))
    made = list(contenders(schema, width, options.device))
    for contender in made:
        contender.check(draw_batch(schema, 3, min(lengths), 1).to(options.device))
    rows: list[Row] = []
    for length in lengths:
        for batch_size in map(int, options.batches.split(",")):
            # The largest case takes seconds for a call of some contenders.
            rounds = min(options.rounds, 3) if length * batch_size > 100_000 else options.rounds
            for row in rows_of(made, schema, length, batch_size, rounds):
                rows.append(row)
                print(*row.values(), sep="\t", flush=True)
            gc.collect()
    if options.quick:
        return
    notes = [
        "Written by `python benchmarks/serving/search.py`; do not edit.",
        f"Items {num_items:,}, categories 9,408 and positions, vectors of {width} values for each "
        "of the three, K = 20, full histories, ids by Zipf's law. DARE's representation vectors "
        f"have {width} values whatever its attention width. `search` is from ids to what the K "
        "behaviours found count, `score` from a batch to its logits. Milliseconds are for the "
        "whole batch; ratios are to DARE of full width within a round, below 1 is faster.",
        "TWIN searches by the same code as DARE, in two stages. ETA and SDIM are measured as "
        "recemb has them, hashing the vectors of the history at every request: a server that "
        "stores hashes of items (ETA) or sums of buckets of users (SDIM) does less than this. ETA "
        "scores the whole history as TWIN does, for its outputs have both, and hashes besides.",
        "Published (Feng et al., ICLR 2025, figure 11): half the attention width is half the "
        "search, counted in operations; no time is given.",
    ]
    tables = {
        "Every case": rows,
        "Time of the search over that of DARE at full width": summary(rows),
    }
    name = "search" if options.device.type == "cpu" else f"search_{options.device.type}"
    print(write_tables(name, "Search in long histories", notes, tables))


if __name__ == "__main__":
    main()
