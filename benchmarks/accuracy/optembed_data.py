"""The data of OptEmbed's claims: planted clicks with noise fields, and Frappe."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from recemb.data.prepared import Prepared
from recemb.data.table import Table

NUM_ROWS = 60_000
SIZES = (10, 20, 40, 90, 200, 450, 1000, 2000, 3600, 6000, 9000, 12278)
NOISE_FIELDS = (9, 10, 11)
"""Places of the fields that the label does not depend on: the largest."""
RANK = 2
FIRST_ORDER, SECOND_ORDER = 0.7, 0.5
"""Weights of ids alone, and of products of pairs; see the notes of the page for their choice."""
DATA_SEED = 1
ZIPF_EXPONENT = 1.05
FRAPPE_FIELDS = (
    *("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather"),
    *("country", "city"),
)


def synthetic(folder: Path) -> Prepared:
    """Return the planted data: labels by weights of ids and, above all, by products of pairs.

    60,000 rows of 12 Zipf-distributed fields, 34,688 ids in all, nine of which decide the label.
    The three largest, with 79 % of the ids, are noise. An id's vector in a product is as long as
    any other's, so that little hinges on a few frequent ids.
    """
    rng = np.random.default_rng(DATA_SEED)
    ids, logit = [], np.full(NUM_ROWS, -0.6)
    informative = [f for f in range(len(SIZES)) if f not in NOISE_FIELDS]
    factors = []
    for size in SIZES:
        chance = np.arange(1, size + 1, dtype=np.float64) ** -ZIPF_EXPONENT
        ids.append(rng.choice(size, NUM_ROWS, p=chance / chance.sum()))
        directions = rng.normal(size=(size, RANK))
        length = np.linalg.norm(directions, axis=1, keepdims=True)
        factors.append(RANK**0.5 * directions / length)
    for f in informative:
        logit += FIRST_ORDER * rng.normal(size=SIZES[f])[ids[f]]
    total = sum(factors[f][ids[f]] for f in informative)
    squares = sum(factors[f][ids[f]] ** 2 for f in informative)
    logit += SECOND_ORDER * ((total**2 - squares) / 2).sum(axis=1)
    label = (rng.random(NUM_ROWS) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    columns = {f"f{f:02d}": pa.array(values) for f, values in enumerate(ids)}
    pq.write_table(pa.table({"label": pa.array(label), **columns}), folder / "rows.parquet")
    data = Table(
        files=["rows.parquet"],
        label="label",
        categorical={
            f"f{f:02d}": {"encoding": "ids", "num_embeddings": size} for f, size in enumerate(SIZES)
        },
    )
    return data.prepare(folder, folder / "prepared")


def frappe(raw: Path, folder: Path) -> Prepared:
    """Return Frappe's validation and test files as one set, 8:1:1, ids of all of it."""
    tables = [pa.csv.read_csv(raw / f"{name}.csv.gz") for name in ("valid", "test")]
    whole = pa.concat_tables(tables)
    columns, sizes = {"label": whole.column("label")}, {}
    for field in FRAPPE_FIELDS:
        encoded = whole.column(field).combine_chunks().dictionary_encode()
        columns[field] = encoded.indices.cast(pa.int64())
        sizes[field] = len(encoded.dictionary)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    data = Table(
        files=["rows.parquet"],
        label="label",
        categorical={f: {"encoding": "ids", "num_embeddings": size} for f, size in sizes.items()},
    )
    return data.prepare(folder, folder / "prepared")
