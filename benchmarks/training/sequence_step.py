"""Training samples a second of DARE, against dense Adam over all rows of `nn.Embedding`.

    python benchmarks/training/sequence_step.py [--items 1000000] [--batches 2048,256] [--quick]

Histories of 200, vectors of 16, the 20 best, both heads, Adam for the dense part: the settings of
the released code of Feng et al., ICLR 2025. Contenders take turns; ratios are taken within a round.
Writes benchmarks/results/sequence_step.{csv,md}.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from sequence_published import PublishedDARE
from sequence_turns import (
    Row,
    draw_batch,
    sequence_schema,
    spread,
    take_turns,
    write_tables,
)
from torch import nn

from recemb.data.batch import Batch
from recemb.data.schema import Schema
from recemb.models.sequence.dare import DARE
from recemb.tables.full import full_tables
from recemb.tables.optimizer import Kind, TableOptimizer

WIDTH = 16
SEED = 0
PUBLISHED = "nn.Embedding, dense Adam, as published"
CLAIM = 5.0
Step = Callable[[Batch], None]
ROW_SPARSE: dict[str, Kind] = {
    "recemb, row-sparse Adam": "adam",
    "recemb, row-wise Adagrad": "rowwise_adagrad",
}


def contenders(schema: Schema) -> Iterator[tuple[str, Step]]:
    """Yield the training step of each contender."""
    torch.manual_seed(SEED)
    published = PublishedDARE(schema, dim=WIDTH)
    yield PUBLISHED, _step(published.loss, published.parameters(), is_fused=False)
    for name, kind in {"recemb's model, dense Adam": None, **ROW_SPARSE}.items():
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


def rows_of(
    schema: Schema, steps: dict[str, Step], batch_size: int, length: int, rounds: int
) -> Iterator[Row]:
    """Yield a row for each contender."""
    batches = [draw_batch(schema, batch_size, length, seed) for seed in range(4)]
    runs = {n: lambda turn, s=s: s(batches[turn % len(batches)]) for n, s in steps.items()}
    take_turns(runs, 1)
    seconds = take_turns(runs, rounds)
    for name, its in seconds.items():
        ratios = [one / mine for one, mine in zip(seconds[PUBLISHED], its, strict=True)]
        yield {
            "device": "cpu",
            "items": schema.categorical[0].num_embeddings,
            "batch": batch_size,
            "length": length,
            "contender": name,
            **{f"samples/s {n}": v for n, v in spread([batch_size / s for s in its], 0).items()},
            **{f"times published {n}": v for n, v in spread(ratios, 2).items()},
            "rounds": rounds,
            "seed": SEED,
        }


def verdicts(rows: list[Row]) -> list[Row]:
    """Return whether the claim holds, case by case."""
    return [
        {
            "batch": row["batch"],
            "length": row["length"],
            "contender": row["contender"],
            "claim": f"at least {CLAIM:g} times the published way's samples a second",
            "measured": row["times published median"],
            "holds": "yes" if row["times published median"] >= CLAIM else "NO",
        }
        for row in rows
        if row["contender"] in ROW_SPARSE
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
    torch.set_num_threads(options.threads)
    length, num_items = (20, 10_000) if options.quick else (options.length, options.items)
    schema = sequence_schema(num_items, length)
    steps = dict(contenders(schema))
    rows: list[Row] = []
    for batch_size in [64] if options.quick else map(int, options.batches.split(",")):
        for row in rows_of(schema, steps, batch_size, length, options.rounds):
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
    ]
    tables = {"Samples a second": rows, "The claim": verdicts(rows)}
    print(write_tables("sequence_step", "Training step of DARE", notes, tables))


if __name__ == "__main__":
    main()
