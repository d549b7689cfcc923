"""Files that cannot be used, and differences between files that do not matter."""

import gzip
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recemb.data.avazu import STRINGS, Avazu
from recemb.data.criteo import Criteo
from recemb.data.dataset import Dataset
from recemb.data.frappe import FEATURES, Frappe
from recemb.data.movielens import MovieLens
from recemb.data.table import Table


def criteo_line(label: int = 0) -> str:
    return "\t".join([str(label), *["2"] * 13, *["68fd1e64"] * 26])


def avazu_line(hour: int = 14102100, site: str = "85f751fd", click: int = 0) -> str:
    values = [10**18, click, hour, 1005, 0, site, *["c4e18dd6"] * 8, 1, 0, *range(8)]
    return ",".join(map(str, values))


AVAZU_HEADER = ",".join(["id", "click", "hour", *STRINGS])
FRAPPE_HEADER = ",".join(["label", *FEATURES])
FRAPPE_LINE = ",".join(map(str, range(1, 12)))
COLUMNS: dict[str, Any] = {
    "label": "click",
    "dense": {"price": "log"},
    "categorical": {
        "shop": {"encoding": "ids", "num_embeddings": 5},
        "tags": {"is_multi_hot": True, "weights": "tag_weights"},
    },
    "split": {"rule": "time", "val": 0.0, "test": 0.0},
}
CRITEO, FRAPPE, AVAZU, MOVIELENS = Criteo(), Frappe(), Avazu(), MovieLens()
TABLE = Table(**COLUMNS, files=["clicks.csv"])

PACKED = gzip.compress("".join(f"{criteo_line(i % 2)}\n" for i in range(2000)).encode())
BAD_CHECKSUM = PACKED[:-8] + bytes(4) + PACKED[-4:]
BAD_FILES: dict[str, tuple[Dataset, bytes, str]] = {
    "criteo: empty": (CRITEO, b"", "train.txt: the file is empty; replace it or leave it out"),
    "criteo: packed and cut short": (
        CRITEO,
        PACKED[: len(PACKED) // 2],
        "train.txt: the compressed file is truncated or damaged (",
    ),
    "criteo: packed with a wrong checksum": (
        CRITEO,
        BAD_CHECKSUM,
        "train.txt: the compressed file is truncated or damaged (CRC check failed",
    ),
    "criteo: packed by something else": (
        CRITEO,
        b"PK\x03\x04\x14\x00" * 20,
        "train.txt:1: the line has 1 columns instead of 40",
    ),
    "frappe: empty": (FRAPPE, b"", "train.csv: the file is empty; replace it"),
    "frappe: only a header": (
        FRAPPE,
        f"{FRAPPE_HEADER}\n".encode(),
        "train.csv: the file has a header but no rows; replace it or leave it out",
    ),
    "frappe: a column missing in the header": (
        FRAPPE,
        f"{FRAPPE_HEADER},\n{FRAPPE_LINE},\n".replace("weather", "wether").encode(),
        "train.csv: there is no column ['weather']; the file has ['label', 'user'",
    ),
    "frappe: a column twice in the header": (
        FRAPPE,
        f"{FRAPPE_HEADER},user\n{FRAPPE_LINE},1\n".encode(),
        "train.csv:1: the header names ['user'] twice; rename one of each",
    ),
    "frappe: no header": (
        FRAPPE,
        f"{FRAPPE_LINE}\n{FRAPPE_LINE}\n".encode(),
        "train.csv: there is no column ['label', 'user'",
    ),
    "avazu: UTF-16": (
        AVAZU,
        f"{AVAZU_HEADER}\n{avazu_line()}\n".encode("utf-16"),
        "train.csv:1: the header is not utf-8 (",
    ),
    "avazu: two quotes that span lines": (
        AVAZU,
        "\n".join(
            [AVAZU_HEADER, avazu_line(site='"85f751fd'), avazu_line(site='85f751fd"'), ""]
        ).encode(),
        "train.csv:2: column 'site_id' opens a quote that the line does not close",
    ),
    "movielens: empty": (MOVIELENS, b"", "ratings.csv: the file is empty"),
    "table: only a header": (
        TABLE,
        b"click,price,shop,tags,tag_weights\n",
        "clicks.csv: the file has a header but no rows",
    ),
}


@pytest.mark.parametrize(("data", "content", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_an_unusable_file_is_named(
    tmp_path: Path, data: Dataset, content: bytes, message: str
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("valid.csv", "test.csv"):
        (raw / name).write_text(f"{FRAPPE_HEADER}\n{FRAPPE_LINE}\n")
    (raw / "movies.csv").write_text("movieId,title,genres\n1,Film (1995),Drama\n")
    (raw / message.partition(":")[0]).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{raw}/{message}")):
        data.prepare(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


PARQUET: dict[str, Any] = {
    "click": [0, 1],
    "price": [0.5, 2.0],
    "shop": [0, 4],
    "tags": [["a"], ["b", "c"]],
    "tag_weights": [[1.0], [0.5, 2.0]],
}
BAD_PARQUET: dict[str, tuple[dict[str, Any], str]] = {
    "label in words": ({"click": ["0", "yes"]}, ":2: column 'click' has value 'yes', which is not"),
    "label 2": ({"click": [0, 2]}, ":2: column 'click' has value '2', which is not a label (0"),
    "label missing": ({"click": [0, None]}, ":2: column 'click' is missing, which is not a label"),
    "a list in place of a number": (
        {"price": [[1.0], [2.0]]},
        ": column 'price' has type list<element: double>, but a number is needed",
    ),
    "an infinite number": (
        {"price": [1.0, float("inf")]},
        ":2: column 'price' has value 'inf', which is not finite",
    ),
    "an id out of range": (
        {"shop": [0, 5]},
        ":2: column 'shop' has value '5', which is not an id in [0, 5)",
    ),
    "a fraction in place of an id": (
        {"shop": [0.5, 1.0]},
        ":1: column 'shop' has value '0.5', which is not a whole number",
    ),
    "more weights than values": (
        {"tag_weights": [[1.0, 2.0], [0.5, 2.0]]},
        ":1: column 'tag_weights' has value '[1.0, 2.0]', which has not as many weights",
    ),
    "a column missing": ({"price": None}, ": there is no column ['price']; the file has ['click'"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_PARQUET.values(), ids=BAD_PARQUET.keys())
def test_a_bad_parquet_column_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    columns = {name: v for name, v in {**PARQUET, **changes}.items() if v is not None}
    file = tmp_path / "clicks.parquet"
    pq.write_table(pa.table(columns), file)
    with pytest.raises(ValueError, match=re.escape(f"{file}{message}")):
        Table(**COLUMNS, files=[file.name]).prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("num_bytes", [0, 3, 200])
def test_a_truncated_parquet_file_is_named(tmp_path: Path, num_bytes: int) -> None:
    file = tmp_path / "clicks.parquet"
    pq.write_table(pa.table(PARQUET), file)
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(ValueError, match=r"clicks\.parquet: this is not a readable Parquet file"):
        Table(**COLUMNS, files=[file.name]).prepare(tmp_path, tmp_path / "out")


def test_a_parquet_file_without_rows_is_named(tmp_path: Path) -> None:
    file = tmp_path / "clicks.parquet"
    pq.write_table(pa.table(PARQUET).slice(0, 0), file)
    with pytest.raises(ValueError, match=r"clicks\.parquet: the file has no rows"):
        Table(**COLUMNS, files=[file.name]).prepare(tmp_path, tmp_path / "out")


def contents(folder: Path, lines: Sequence[str], form: str) -> Path:
    """Write Avazu's lines in another form that means the same."""
    folder.mkdir()
    text = "\n".join([*lines, ""])
    data = {
        "plain": text,
        "CRLF": text.replace("\n", "\r\n"),
        "no line end at the end": text.removesuffix("\n"),
        "a byte order mark": "\ufeff" + text,
        "blank lines": text.replace("\n", "\n\n"),
        "quoted strings": text.replace("85f751fd", '"85f751fd"'),
    }.get(form, "")
    if form == "columns in another order":
        data = "\n".join([*(",".join(reversed(line.split(","))) for line in lines), ""])
    if form == "packed under a plain name":
        (folder / "train.csv").write_bytes(gzip.compress(text.encode()))
    elif form == "plain under a packed name":
        (folder / "train.gz").write_bytes(text.encode())
    else:
        (folder / "train.csv").write_bytes(data.encode())
    return folder


@pytest.mark.parametrize(
    "form",
    [
        "CRLF",
        "no line end at the end",
        "a byte order mark",
        "blank lines",
        "quoted strings",
        "columns in another order",
        "packed under a plain name",
        "plain under a packed name",
    ],
)
def test_harmless_differences_change_nothing(tmp_path: Path, form: str) -> None:
    lines = [AVAZU_HEADER, *(avazu_line(14102100 + i, click=i % 2) for i in range(9))]
    data = Avazu(min_count=1, val=0.0, test=0.0)
    plain = data.prepare(contents(tmp_path / "a", lines, "plain"), tmp_path / "out_a")
    other = data.prepare(contents(tmp_path / "b", lines, form), tmp_path / "out_b")
    assert other.manifest["files"] == plain.manifest["files"]
