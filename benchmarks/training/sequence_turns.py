"""What the measurements of sequence models share: their data, taking turns, writing tables."""

import csv
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import context
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.data.batch import Batch
from recemb.data.schema import Categorical, History, Schema

RESULTS = Path(__file__).resolve().parents[1] / "results"
NUM_CATEGORIES = 9_408
ZIPF_EXPONENT = 1.05
Run = Callable[[int], Any]
Row = dict[str, Any]


def sequence_schema(num_items: int, longest: int) -> Schema:
    """Return item, category and position, each with a history."""
    names = {"item": num_items, "category": NUM_CATEGORIES, "position": longest + 1}
    return Schema(
        dense=(),
        categorical=tuple(Categorical(name=n, num_embeddings=size) for n, size in names.items()),
        label="label",
        histories=tuple(
            History(name=f"{n}_history", of=n, is_position=n == "position") for n in names
        ),
    )


def draw_batch(schema: Schema, batch_size: int, length: int, seed: int) -> Batch:
    """Return targets with full histories; items and categories follow Zipf's law."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for size in (1, length):
        for column in schema.categorical[:2]:
            values.append(_zipf(column.num_embeddings, batch_size * size, generator))
        positions = torch.zeros(1) if size == 1 else torch.arange(length, 0, -1)
        values.append(positions.long().repeat(batch_size))
    lengths = torch.ones(3 * batch_size, dtype=torch.int64)
    return Batch(
        dense=torch.zeros(batch_size, 0),
        features=KeyedJaggedTensor(
            keys=list(schema.feature_names),
            values=torch.cat(values),
            lengths=torch.cat([lengths, length * lengths]),
        ),
        labels=(torch.rand(batch_size, generator=generator) < 1 / 3).float(),
    )


def take_turns(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each run, round by round; they take turns, the order rotating."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            runs[name](turn)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """Return the median, and the 20th and 80th percentile."""
    several = values if len(values) > 1 else [*values, *values]
    found = statistics.quantiles(several, n=100, method="inclusive")
    return {n: round(found[q - 1], digits) for n, q in (("median", 50), ("p20", 20), ("p80", 80))}


def write_tables(
    name: str, title: str, notes: Sequence[str], tables: Mapping[str, Sequence[Row]]
) -> str:
    """Write results/NAME.md and, of the first table, NAME.csv; return the former.

    Args:
        name: of the files.
        title: of the page.
        notes: paragraphs before the tables.
        tables: rows by heading; one "about" has what every row carries.
    """
    about = {**context(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    first = next(iter(tables.values()))
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*first[0], *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in first)
    lines = [f"# {title}", "", *(line for note in notes for line in (note, ""))]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    for heading, rows in tables.items():
        lines += ["", f"## {heading}", "", *_markdown(rows)]
    text = "\n".join(lines) + "\n"
    (RESULTS / f"{name}.md").write_text(text)
    return text


def _markdown(rows: Sequence[Row]) -> list[str]:
    return [
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *("| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows),
    ]


def _zipf(num_rows: int, size: int, generator: torch.Generator) -> Tensor:
    """Return ids (size,), spread over the table as hashing would spread them."""
    u = torch.rand(size, generator=generator, dtype=torch.float64)
    power = 1 - ZIPF_EXPONENT
    ranks = ((u * ((num_rows + 1) ** power - 1) + 1) ** (1 / power) - 1).long()
    return ranks.clamp(0, num_rows - 1) * 48_271 % num_rows
