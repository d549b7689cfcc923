"""Malformed lines: each message names file, line, column and value, and says the way out."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from recemb.data.avazu import STRINGS, Avazu
from recemb.data.criteo import Criteo
from recemb.data.dataset import Dataset
from recemb.data.frappe import FEATURES, Frappe
from recemb.data.kdd12 import KDD12
from recemb.data.movielens import MovieLens
from recemb.data.movielens_release import GENRES_100K
from recemb.data.table import Table

LEAVE_OUT = "correct the line, or leave such lines out with on_bad_line=skip"
EVERY_ROW_TRAINS: dict[str, Any] = {"split": "time", "val": 0.0, "test": 0.0}


@dataclass(frozen=True)
class Format:
    """A data set, and files in its format of which one has an exchangeable part.

    Attributes:
        data: makes the data set.
        file: the file with the part, relative to the raw folder.
        good: lines before the bad one, then one after it.
        others: further files.
    """

    data: Callable[[str], Dataset]
    file: str
    good: tuple[list[str], str]
    others: dict[str, list[str]] = field(default_factory=dict)

    def write(self, folder: Path, bad: str | bytes) -> None:
        folder.mkdir()
        for name, lines in self.others.items():
            (folder / name).write_text("".join(f"{line}\n" for line in lines))
        before, after = self.good
        data = "".join(f"{line}\n" for line in before).encode()
        data += bad.encode() if isinstance(bad, str) else bad
        (folder / self.file).write_bytes(data + f"\n{after}\n".encode())


def criteo_line(label: object = 0, i1: object = 1, c1: str = "5a5a5a5a") -> str:
    return "\t".join([str(label), str(i1), *["2"] * 12, c1, *["68fd1e64"] * 25])


def frappe_line(label: object = 1, user: object = 3) -> str:
    return ",".join(map(str, [label, user, *range(100, 109)]))


def avazu_line(hour: object = 14102100, site: str = "85f751fd", click: object = 0) -> str:
    values = [10**18, click, hour, 1005, 0, site, *["c4e18dd6"] * 8, 1, 0, *range(8)]
    return ",".join(map(str, values))


def kdd12_line(click: object = 0, user: object = 5) -> str:
    return "\t".join(map(str, [click, 1, 4298118681424644510, *range(1, 9), user]))


AVAZU_HEADER = ",".join(["id", "click", "hour", *STRINGS])
FRAPPE_HEADER = ",".join(["label", *FEATURES])
FRAPPE_FILE = [FRAPPE_HEADER, frappe_line(0)]
FILM = "1|Film (1995)|01-Jan-1995|||" + "|".join("0" for _ in GENRES_100K)

CRITEO = Format(
    lambda skip: Criteo(**EVERY_ROW_TRAINS, min_count=1, on_bad_line=skip),
    "train.txt",
    ([criteo_line(), criteo_line(1)], criteo_line()),
)
FRAPPE = Format(
    lambda skip: Frappe(on_bad_line=skip),
    "train.csv",
    ([FRAPPE_HEADER, frappe_line()], frappe_line(0)),
    {"valid.csv": FRAPPE_FILE, "test.csv": FRAPPE_FILE},
)
AVAZU = Format(
    lambda skip: Avazu(**EVERY_ROW_TRAINS, on_bad_line=skip),
    "train.csv",
    ([AVAZU_HEADER, avazu_line()], avazu_line(click=1)),
)
KDD_CUP = Format(
    lambda skip: KDD12(val=0.0, test=0.0, on_bad_line=skip),
    "training.txt",
    ([kdd12_line(), kdd12_line(2)], kdd12_line()),
)
ML_100K = Format(
    lambda skip: MovieLens(**EVERY_ROW_TRAINS, on_bad_line=skip),
    "u.data",
    (["1\t1\t5\t874965758", "1\t1\t2\t874965759"], "1\t1\t1\t874965760"),
    {"u.user": ["1|24|M|writer|12345"], "u.item": [FILM]},
)
ML_1M = Format(
    ML_100K.data,
    "ratings.dat",
    (["1::1::5::978300760", "1::1::2::978300761"], "1::1::1::978300762"),
    {"users.dat": ["1::F::1::10::12345"], "movies.dat": ["1::Film (1995)::Drama"]},
)
ML_LATEST = Format(
    ML_100K.data,
    "ratings.csv",
    (["userId,movieId,rating,timestamp", "1,1,4.5,1147880044"], "1,1,0.5,1147880045"),
    {"movies.csv": ["movieId,title,genres", "1,Film (1995),Drama"]},
)
COLUMNS: dict[str, Any] = {
    "label": "click",
    "dense": {"price": "log"},
    "categorical": {
        "shop": {"encoding": "ids", "num_embeddings": 5},
        "tags": {"is_multi_hot": True, "weights": "tag_weights"},
    },
    "split": {"rule": "time", "val": 0.0, "test": 0.0},
}
TABLE = Format(
    lambda skip: Table(**COLUMNS, files=["clicks.csv"], on_bad_line=skip),
    "clicks.csv",
    (["click,price,shop,tags,tag_weights", "1,2.5,4,a|b,1|0.5"], "0,,0,,"),
)

# Format, the bad line, which is the third of its file, and what the message says after file and
# line.
BAD_LINES: dict[str, tuple[Format, str | bytes, str]] = {
    "criteo: too few columns": (
        CRITEO,
        "0\t1\t2",
        "the line has 3 columns instead of 40 (column 'I2' is the last that both have, with "
        "value '2')",
    ),
    "criteo: too many columns": (
        CRITEO,
        criteo_line() + "\tmore",
        "the line has 41 columns instead of 40 (column 'C26' is the last that both have, with "
        "value '68fd1e64')",
    ),
    "criteo: commas in place of tabs": (
        CRITEO,
        criteo_line().replace("\t", ","),
        "the line has 1 columns instead of 40",
    ),
    "criteo: text in an integer column": (
        CRITEO,
        criteo_line(i1="68fd1e64x"),
        "column 'I1' has value '68fd1e64x', which is not a number",
    ),
    "criteo: infinity in an integer column": (
        CRITEO,
        criteo_line(i1="-inf"),
        "column 'I1' has value '-inf', which is not finite",
    ),
    "criteo: label 2": (
        CRITEO,
        criteo_line(2),
        "column 'label' has value '2.0', which is not a label (0 or 1)",
    ),
    "criteo: label missing": (
        CRITEO,
        criteo_line(""),
        "column 'label' is missing, which is not a label (0 or 1)",
    ),
    "criteo: label in words": (
        CRITEO,
        criteo_line("yes"),
        "column 'label' has value 'yes', which is not a number",
    ),
    "criteo: bytes that are not UTF-8": (
        CRITEO,
        criteo_line().encode().replace(b"5a5a5a5a", b"5a\xff\xfe5a5a"),
        r"column 'C1' has the bytes b'\xff\xfe5a5a\t6', which are not utf-8",
    ),
    "criteo: a hole of NUL bytes": (
        CRITEO,
        b"\0" * 80,
        "the line has 1 columns instead of 40",
    ),
    "criteo: two lines run together": (
        CRITEO,
        criteo_line() + criteo_line(),
        "the line has 79 columns instead of 40 (column 'C26' is the last that both have, with "
        "value '68fd1e640')",
    ),
    "frappe: text in a column of integers": (
        FRAPPE,
        frappe_line(user="u3"),
        "column 'user' has value 'u3', which is not a whole number",
    ),
    "frappe: an integer of more than 64 bits": (
        FRAPPE,
        frappe_line(user=2**63),
        "column 'user' has value '9223372036854775808', which does not fit into 64 bits",
    ),
    "frappe: a fraction in a column of integers": (
        FRAPPE,
        frappe_line(user=1.5),
        "column 'user' has value '1.5', which is not a whole number",
    ),
    "frappe: the group is missing": (
        FRAPPE,
        frappe_line(user=""),
        "column 'user' is missing, which cannot be: examples need a group",
    ),
    "frappe: the header again": (
        FRAPPE,
        FRAPPE_HEADER,
        "column 'label' has value 'label', which is not a number",
    ),
    "avazu: an impossible hour": (
        AVAZU,
        avazu_line(hour=14103124),
        "column 'hour_of_day' has value '14103124', which is not an id in [0, 24)",
    ),
    "avazu: an impossible day": (
        AVAZU,
        avazu_line(hour=14023012),
        "column 'hour_of_day' has value '14023012', which is not an id in [0, 24)",
    ),
    "avazu: a quote that is not closed": (
        AVAZU,
        avazu_line(site='"85f751fd'),
        "column 'site_id' opens a quote that the line does not close ('85f751fd,c4e18dd6,",
    ),
    "kdd12: clicks in words": (
        KDD_CUP,
        kdd12_line(click="one"),
        "column 'click' has value 'one', which is not a number",
    ),
    "kdd12: a user in words": (
        KDD_CUP,
        kdd12_line(user="root"),
        "column 'user_id' has value 'root', which is not a whole number",
    ),
    "movielens 100K: stars in words": (
        ML_100K,
        "1\t1\tfive\t874965758",
        "column 'rating' has value 'five', which is not a number",
    ),
    "movielens 100K: no stars": (
        ML_100K,
        "1\t1\t\t874965758",
        "column 'rating' is missing, which is not a label",
    ),
    "movielens 1M: a colon too few": (
        ML_1M,
        "1::1:5::978300760",
        "the line has 3 columns instead of 4 (column 'rating' is the last that both have, with "
        "value '978300760')",
    ),
    "movielens latest: a time in words": (
        ML_LATEST,
        "1,1,5.0,2006-05-17",
        "column 'timestamp' has value '2006-05-17', which is not a whole number",
    ),
    "table: an id out of range": (
        TABLE,
        "1,2.5,5,a,1",
        "column 'shop' has value '5', which is not an id in [0, 5)",
    ),
    "table: a negative id": (
        TABLE,
        "1,2.5,-1,a,1",
        "column 'shop' has value '-1', which is not an id in [0, 5)",
    ),
    "table: an id missing": (
        TABLE,
        "1,2.5,,a,1",
        "column 'shop' is missing, which is not an id in [0, 5)",
    ),
    "table: fewer weights than values": (
        TABLE,
        "1,2.5,0,a|b,1",
        "column 'tag_weights' has value '1', which has not as many weights as 'tags' has values",
    ),
    "table: a weight in words": (
        TABLE,
        "1,2.5,0,a|b,1|much",
        "column 'tag_weights' has value '1|much', which is not a number",
    ),
    "table: a weight that is not finite": (
        TABLE,
        "1,2.5,0,a|b,1|inf",
        "column 'tag_weights' has value '1|inf', which holds a weight that is not finite",
    ),
    "table: a number beyond float64": (
        TABLE,
        "1,1e999,0,a,1",
        "column 'price' has value 'inf', which is not finite",
    ),
}

each_bad_line = pytest.mark.parametrize(
    ("layout", "bad", "message"), BAD_LINES.values(), ids=BAD_LINES.keys()
)


@each_bad_line
def test_a_bad_line_is_named(
    tmp_path: Path, layout: Format, bad: str | bytes, message: str
) -> None:
    raw = tmp_path / "raw"
    layout.write(raw, bad)
    expected = re.escape(f"{raw / layout.file}:3: {message}")
    with pytest.raises(ValueError, match=expected) as raised:
        layout.data("raise").prepare(raw, tmp_path / "out")
    assert str(raised.value).endswith(LEAVE_OUT)
    assert not (tmp_path / "out").exists()


@each_bad_line
def test_a_bad_line_is_counted_where_such_lines_are_skipped(
    tmp_path: Path,
    layout: Format,
    bad: str | bytes,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw = tmp_path / "raw"
    layout.write(raw, bad)
    with caplog.at_level(logging.WARNING):
        prepared = layout.data("skip").prepare(raw, tmp_path / "out")
    assert sum(prepared.manifest["bad_lines"].values()) == 1
    headers = int(layout.file.endswith(".csv"))
    assert prepared.num_rows("train") == len(layout.good[0]) - headers + 1
    assert "left out 1 bad lines: 1 x " in caplog.text


def test_skipped_lines_are_counted_by_reason(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    bad = [criteo_line(2), "0\t1", criteo_line(i1="x"), "0\t1\t2", criteo_line(3)]
    CRITEO.write(raw, "\n".join(bad))
    prepared = CRITEO.data("skip").prepare(raw, tmp_path / "out")
    assert prepared.manifest["bad_lines"] == {
        "column 'label' is not a label (0 or 1)": 2,
        "wrong number of columns": 2,
        "column 'I1' is not a number": 1,
    }
