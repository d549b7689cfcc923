"""Criteo display advertising: 13 integers and 26 hashed strings per ad shown.

Two publications share one layout (tab-separated, no header: label, I1 to I13, C1 to C26, any of
them empty): `train.txt` of the Kaggle contest of 2014 (45,840,617 lines, a week in order of time)
and the 24 files `day_0` to `day_23` of the 1TB click logs (about 4.4 billion lines).

Source: Criteo Labs, "Kaggle Display Advertising Challenge Dataset" and "Criteo 1TB Click Logs".
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from recemb.data.column import CategoricalColumn, Columns, DenseColumn, LabelColumn
from recemb.data.dataset import Dataset
from recemb.data.location import one_of
from recemb.data.manifest import SPLITS
from recemb.data.pipeline import Description
from recemb.data.pipeline import prepare as prepare_description
from recemb.data.prepared import Prepared
from recemb.data.source import Chunk, OnBadLine, Source, missing_file
from recemb.data.split import ByRatio, ByTime, Codes, Split
from recemb.data.text import DelimitedText

INTEGERS = tuple(f"I{j}" for j in range(1, 14))
STRINGS = tuple(f"C{j}" for j in range(1, 27))

Numbers = Literal["log", "standardise", "identity", "buckets"]
Rule = Literal["random", "time", "last_file"]

_DAY = re.compile(r"day_(\d+)(\.gz)?")
_WAY_OUT = (
    "fetch the Criteo data (https://ailab.criteo.com/ressources) and point data.raw at train.txt, "
    "at a day file, or at the folder of either"
)


class Criteo(Dataset):
    """Kaggle's `train.txt` or the day files of the 1TB logs, plain or .gz.

    `raw` is one file or the folder that holds `train.txt` or `day_0`, `day_1`, ...; day files are
    read in the order of their numbers, and need not all be there.

    A missing string, and a missing integer in a bucket, counts as one more value: that something
    was not recorded tells about the ad. A missing integer as a number is 0 after its transform.

    Vocabularies take memory for each distinct value: well under 2 GB for Kaggle. For the 1TB logs
    take `encoding` "hash", which needs no memory and no first pass.

    Args:
        numbers: what becomes of I1 to I13: "log", sign(x) * log(1 + |x|), the sign because I2 is
            sometimes negative; "standardise"; "identity"; or "buckets", 13 more categorical
            features by floor(log(x)^2), as the winners of the contest made them and BARS does.
        encoding: "vocabulary", or "hash" for any value without a first pass.
        num_embeddings: ids per feature: an upper limit with "vocabulary" (None is none), the exact
            number with "hash".
        min_count: a value gets an id from this many training occurrences on; "vocabulary" only.
            BARS has 10 (Criteo_x4_001) and 2 (Criteo_x4_002).
        split: "random" draws lines by `seed`, 8:1:1 by default as in AutoInt and BARS's
            Criteo_x4; "time" takes the last lines for the test and those before for validation
            (val and test of 1/14 each are the halves of Kaggle's seventh day); "last_file" trains
            on all files but the last, of which the first half is for validation and the second for
            the test. (DLRM's reference code halves the last day too, but tests on its first half.)
        val: share of the lines for validation; not used by "last_file".
        test: share of the lines for the test; not used by "last_file".
        seed: of "random" and of "hash".
        on_bad_line: "raise" at the first bad line, or "skip" and count them.

    Raises:
        ValueError: on an unknown choice or a number out of range.
    """

    name = "criteo"

    def __init__(
        self,
        *,
        numbers: Numbers = "log",
        encoding: Literal["vocabulary", "hash"] = "vocabulary",
        num_embeddings: int | None = None,
        min_count: int = 10,
        split: Rule = "random",
        val: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        on_bad_line: OnBadLine = "raise",
    ) -> None:
        for key, value, choices in (
            ("numbers", numbers, get_args(Numbers)),
            ("encoding", encoding, ("vocabulary", "hash")),
            ("split", split, get_args(Rule)),
        ):
            if value not in choices:
                raise ValueError(f"data 'criteo': {key} must be one of {choices}, got '{value}'")
        self.numbers = numbers
        self.encoding = encoding
        self.num_embeddings = num_embeddings
        self.min_count = min_count
        self.split = split
        self.val, self.test = val, test
        self.seed = seed
        self.on_bad_line = on_bad_line
        self.columns = self._columns()

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the prepared set in `out`, made from `raw` if needed."""
        files = raw_files(raw)
        description = Description(
            name=self.name,
            source=_source(files),
            columns=self.columns,
            split=self._split(files),
            on_bad_line=self.on_bad_line,
            seed=self.seed,
        )
        return prepare_description(description, out, overwrite=overwrite)

    def _columns(self) -> Columns:
        buckets = INTEGERS if self.numbers == "buckets" else ()
        return Columns(
            label=LabelColumn(name="label"),
            dense=tuple(
                DenseColumn(name=n, transform=self.numbers)
                for n in INTEGERS
                if self.numbers != "buckets"
            ),
            categorical=tuple(
                CategoricalColumn(
                    name=name,
                    encoding=self.encoding,
                    num_embeddings=self.num_embeddings,
                    min_count=self.min_count if self.encoding == "vocabulary" else 1,
                    missing="value",
                    transform="buckets" if name in buckets else "none",
                )
                for name in (*buckets, *STRINGS)
            ),
        )

    def _split(self, files: Sequence[Path]) -> Split:
        if self.split == "random":
            return ByRatio(val=self.val, test=self.test, seed=self.seed)
        if self.split == "time":
            return ByTime(val=self.val, test=self.test)
        if len(files) < 2:
            raise ValueError(
                "data 'criteo': split 'last_file' needs several day files, but there is only "
                f"{files[0]}; take split=time or point data.raw at the folder of the days"
            )
        return LastFile(files[-1])


class LastFile(Split):
    """All files are for training but the last: its first half is for validation, then the test.

    Args:
        file: the last file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._num_val = 0

    def fit(self, source: Source, on_bad_line: OnBadLine) -> None:
        """Count the lines of the last file."""
        self._num_val = _source([self._file]).num_rows() // 2

    def assign(self, chunk: Chunk) -> Codes:
        """Return the code that file and line number call for."""
        if chunk.file != self._file:
            return np.full(len(chunk.lines), SPLITS.index("train"), np.uint8)
        is_val = chunk.lines <= self._num_val
        return np.where(is_val, SPLITS.index("val"), SPLITS.index("test")).astype(np.uint8)

    def settings(self) -> dict[str, Any]:
        """Return the rule and the file's name."""
        return {"rule": "last_file", "file": self._file.name}


def raw_files(raw: Path) -> list[Path]:
    """Return the files that `raw` stands for, in order of time.

    Raises:
        FileNotFoundError: if there is nothing of the kind.
        ValueError: if a folder has both publications.
    """
    if not raw.is_dir():
        if not raw.exists():
            raise missing_file(Criteo.name, raw, _WAY_OUT)
        return [raw]
    days: dict[int, Path] = {}
    for path in sorted(raw.iterdir()):  # day_0 comes before day_0.gz
        if match := _DAY.fullmatch(path.name):
            days.setdefault(int(match[1]), path)
    kaggle = one_of(raw, ["train.txt"])
    if days and kaggle:
        raise ValueError(
            f"data 'criteo': {raw} holds {kaggle.name} and day files; point data.raw at one of "
            "them, or move one elsewhere"
        )
    if kaggle:
        return [kaggle]
    if not days:
        raise FileNotFoundError(
            f"data 'criteo': {raw} holds neither train.txt nor day_0, day_1, ..., plain or .gz; "
            f"{_WAY_OUT}"
        )
    return [days[number] for number in sorted(days)]


def _source(files: Sequence[Path]) -> DelimitedText:
    names = ("label", *INTEGERS, *STRINGS)
    return DelimitedText(files, delimiter="\t", column_names=names, quote=None)
