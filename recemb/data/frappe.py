"""Frappe: which mobile app a user opened in which context (ten categorical features).

The layout is BARS's `frappe_x1`: `train.csv`, `valid.csv` and `test.csv` (7:2:1), plain or .gz,
with a header and integer values that are numbered over all columns together.

Source: L. Baltrunas, K. Church, A. Karatzoglou, N. Oliver, "Frappe: Understanding the Usage and
Perception of Mobile App Recommendations In-The-Wild", 2015; negatives and split by X. He and T.-S.
Chua, "Neural Factorization Machines", SIGIR 2017; files of the BARS benchmark (`frappe_x1`).
"""

from pathlib import Path

from recemb.data.column import CategoricalColumn, Columns, LabelColumn
from recemb.data.dataset import Dataset
from recemb.data.location import file_among
from recemb.data.pipeline import Description
from recemb.data.pipeline import prepare as prepare_description
from recemb.data.prepared import Prepared
from recemb.data.source import OnBadLine
from recemb.data.split import ByFile
from recemb.data.text import DelimitedText

FEATURES = (
    *("user", "item", "daytime", "weekday", "isweekend"),
    *("homework", "cost", "weather", "country", "city"),
)

_WAY_OUT = (
    "fetch Frappe_x1 (train.csv, valid.csv, test.csv) from the BARS benchmark, "
    "https://huggingface.co/datasets/reczoo/Frappe_x1, and point data.raw at its folder"
)


class Frappe(Dataset):
    """The three files of `frappe_x1`; each is a split.

    Each feature has a vocabulary of its own over the training file. BARS keeps every value there
    (`min_categr_count` 1), and so does the default here.

    Args:
        min_count: a value gets an id from this many training occurrences on.
        group: the column that GAUC groups by, or None.
        on_bad_line: "raise" at the first bad line, or "skip" and count them.
    """

    name = "frappe"

    def __init__(
        self, *, min_count: int = 1, group: str | None = "user", on_bad_line: OnBadLine = "raise"
    ) -> None:
        self.min_count = min_count
        self.group = group
        self.on_bad_line = on_bad_line

    @property
    def columns(self) -> Columns:
        """Return the label and the ten features."""
        return Columns(
            label=LabelColumn(name="label"),
            categorical=tuple(
                CategoricalColumn(name=f, kind="int", min_count=self.min_count) for f in FEATURES
            ),
            group=self.group,
        )

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the prepared set in `out`, made from the folder `raw` if needed."""
        files = {
            split: [file_among(self.name, raw, [name], _WAY_OUT)]
            for split, name in (("train", "train.csv"), ("val", "valid.csv"), ("test", "test.csv"))
        }
        description = Description(
            name=self.name,
            source=DelimitedText([f for paths in files.values() for f in paths]),
            columns=self.columns,
            split=ByFile(files),
            on_bad_line=self.on_bad_line,
        )
        return prepare_description(description, out, overwrite=overwrite)
