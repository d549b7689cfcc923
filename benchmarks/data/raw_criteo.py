"""A file in Criteo's layout, and the same rows as FuxiCTR reads them, generated.

Strings are eight hexadecimal digits, as Criteo hashed them; popularity follows Zipf's law over
the published number of distinct values; some values are missing, as in the original.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from recemb.data.synthetic import CRITEO_CARDINALITIES

INTEGERS = tuple(f"I{j}" for j in range(1, 14))
STRINGS = tuple(f"C{j}" for j in range(1, 27))
_CHUNK = 100_000
_ZIPF_EXPONENT = 1.1
_SPLITS = (("train", 0.8), ("valid", 0.1), ("test", 0.1))


def generate(folder: Path, num_rows: int, seed: int) -> None:
    """Write `train.txt` (tab-separated, no header) and `train.csv`, `valid.csv`, `test.csv`.

    The CSV files hold the lines of `train.txt`, with a header, in shares of 8:1:1.
    """
    done = folder / "done"
    if done.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    columns = ["label", *INTEGERS, *STRINGS]
    schema = pa.schema([(c, pa.int64() if c[0] in "lI" else pa.string()) for c in columns])
    ends = np.cumsum([round(share * num_rows) for _, share in _SPLITS])
    ends[-1] = num_rows
    raw = csv.CSVWriter(
        folder / "train.txt",
        schema,
        write_options=csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none"),
    )
    parts = [
        csv.CSVWriter(
            folder / f"{name}.csv", schema, write_options=csv.WriteOptions(quoting_style="none")
        )
        for name, _ in _SPLITS
    ]
    row = 0
    while row < num_rows:
        part = int(np.searchsorted(ends, row, side="right"))
        count = min(_CHUNK, int(ends[part]) - row)
        chunk = pa.Table.from_pandas(_chunk(rng, count), schema=schema, preserve_index=False)
        raw.write_table(chunk)
        parts[part].write_table(chunk)
        row += count
    for writer in (raw, *parts):
        writer.close()
    done.touch()


def _chunk(rng: np.random.Generator, count: int) -> pd.DataFrame:
    columns: dict[str, object] = {"label": (rng.random(count) < 0.25).astype(np.int64)}
    for j, name in enumerate(INTEGERS):
        values = np.exp(rng.normal(1 + 0.3 * j, 1.5, count)).astype(np.int64)
        numbers = pd.array(values, dtype="Int64")
        numbers[rng.random(count) < 0.05 * (j % 4)] = pd.NA
        columns[name] = numbers
    for j, (name, size) in enumerate(zip(STRINGS, CRITEO_CARDINALITIES, strict=True)):
        tail = 1 - _ZIPF_EXPONENT
        u = rng.random(count)
        ranks = (1 + u * ((size + 1.0) ** tail - 1)) ** (1 / tail)
        hashed = (ranks.astype(np.uint64) + np.uint64(j << 32)) * np.uint64(0x9E3779B97F4A7C15)
        text = _hexadecimal((hashed >> np.uint64(32)).astype(np.uint32))
        text[rng.random(count) < 0.04 * (j % 5)] = None
        columns[name] = text
    return pd.DataFrame(columns)


def _hexadecimal(values: np.ndarray) -> np.ndarray:
    """Return eight lower-case hexadecimal digits for each uint32."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    shifts = np.arange(28, -1, -4, dtype=np.uint32)
    letters = digits[(values[:, None] >> shifts) & 15]
    return np.char.decode(np.ascontiguousarray(letters).view("S8").ravel(), "ascii").astype(object)
