"""Avazu: mobile ads of ten days, 22 columns beside the label.

`train.csv` (or Kaggle's `train.gz`): a header, one ad per line, in order of time, 40,428,967 lines.
The column `hour`, YYMMDDHH in UTC, becomes three features; `id` is one of a kind and left out.

Source: Avazu and Kaggle, "Click-Through Rate Prediction", 2014; features as in BARS's Avazu_x4.
"""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from recemb.data.column import CategoricalColumn, Columns, LabelColumn
from recemb.data.dataset import Dataset
from recemb.data.location import file_among
from recemb.data.pipeline import Description
from recemb.data.pipeline import prepare as prepare_description
from recemb.data.prepared import Prepared
from recemb.data.source import Derivation, OnBadLine, missing_file
from recemb.data.split import ByRatio, ByTime, Split
from recemb.data.text import DelimitedText

CALENDAR = {"hour_of_day": 24, "weekday": 7, "is_weekend": 2}
"""The features made of `hour`, with their numbers of ids; Monday is 0."""

STRINGS = (
    *("C1", "banner_pos", "site_id", "site_domain", "site_category"),
    *("app_id", "app_domain", "app_category", "device_id", "device_ip", "device_model"),
    *("device_type", "device_conn_type", *(f"C{j}" for j in range(14, 22))),
)

Rule = Literal["random", "time"]

_THURSDAY, _SATURDAY = 3, 5
_WAY_OUT = (
    "fetch train.gz from https://www.kaggle.com/c/avazu-ctr-prediction/data and point data.raw at "
    "it, unpacked or not, or at its folder"
)


class Avazu(Dataset):
    """Kaggle's training file, plain or .gz.

    `raw` is the file or the folder that holds `train.csv`, `train.csv.gz` or `train.gz`.

    Args:
        encoding: "vocabulary", or "hash" for any value without a first pass; not for the three
            features made of `hour`, which are numbers already.
        num_embeddings: ids per feature: an upper limit with "vocabulary" (None is none), the exact
            number with "hash".
        min_count: a value gets an id from this many training occurrences on; "vocabulary" only.
            BARS has 2 (Avazu_x4_001) and 1 (Avazu_x4_002).
        keep_id: whether the line's `id` is a feature too; it tells nothing.
        split: "random" draws lines by `seed`, 8:1:1 by default as in AutoInt and BARS's Avazu_x4;
            "time" takes the last lines for the test and those before for validation.
        val: share of the lines for validation.
        test: share of the lines for the test.
        seed: of "random" and of "hash".
        group: the column that GAUC groups by, such as device_ip, or None.
        on_bad_line: "raise" at the first bad line, or "skip" and count them.

    Raises:
        ValueError: on an unknown choice or a number out of range.
    """

    name = "avazu"

    def __init__(
        self,
        *,
        encoding: Literal["vocabulary", "hash"] = "vocabulary",
        num_embeddings: int | None = None,
        min_count: int = 2,
        keep_id: bool = False,
        split: Rule = "random",
        val: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        group: str | None = None,
        on_bad_line: OnBadLine = "raise",
    ) -> None:
        for key, value, choices in (
            ("encoding", encoding, ("vocabulary", "hash")),
            ("split", split, get_args(Rule)),
        ):
            if value not in choices:
                raise ValueError(f"data 'avazu': {key} must be one of {choices}, got '{value}'")
        calendar = [
            CategoricalColumn(name=name, encoding="ids", num_embeddings=n)
            for name, n in CALENDAR.items()
        ]
        strings = [
            CategoricalColumn(
                name=name,
                encoding=encoding,
                num_embeddings=num_embeddings,
                min_count=min_count if encoding == "vocabulary" else 1,
                missing="value",
            )
            for name in (("id", *STRINGS) if keep_id else STRINGS)
        ]
        self.columns = Columns(
            label=LabelColumn(name="click"), categorical=(*calendar, *strings), group=group
        )
        by_time = split == "time"
        self.split: Split = (
            ByTime(val=val, test=test) if by_time else ByRatio(val=val, test=test, seed=seed)
        )
        self.seed = seed
        self.on_bad_line = on_bad_line

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the prepared set in `out`, made from `raw` if needed."""
        description = Description(
            name=self.name,
            source=DelimitedText(
                [_raw_file(raw)],
                derivation=calendar(),
            ),
            columns=self.columns,
            split=self.split,
            on_bad_line=self.on_bad_line,
            seed=self.seed,
        )
        return prepare_description(description, out, overwrite=overwrite)


def calendar() -> Derivation:
    """Return how the columns of `CALENDAR` come from `hour`."""
    return Derivation(
        name="calendar 1",
        inputs={"hour": "int"},
        outputs=tuple(CALENDAR),
        apply=with_calendar,
    )


def with_calendar(table: pa.Table) -> pa.Table:
    """Return `table` with the columns of `CALENDAR`, made of `hour` (YYMMDDHH).

    What is no date and hour is handed on as it is, to be reported as out of range.
    """
    column = table.column("hour").combine_chunks()
    is_missing = column.is_null().to_numpy(zero_copy_only=False)
    raw = column.fill_null(0).to_numpy()
    year, month, day, hour = raw // 10**6, raw // 10**4 % 100, raw // 100 % 100, raw % 100
    is_month = (raw >= 0) & (year < 100) & (month >= 1) & (month <= 12)
    months = np.where(is_month, (2000 + year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    dates = months.astype("datetime64[D]") + (day - 1)
    is_right = is_month & (dates.astype("datetime64[M]") == months) & (hour < 24)
    weekday = (dates.astype(np.int64) + _THURSDAY) % 7  # day 0, 1 January 1970, was a Thursday
    found = {"hour_of_day": hour, "weekday": weekday, "is_weekend": weekday >= _SATURDAY}
    for name, values in found.items():
        checked = np.where(is_right, values, raw)
        table = table.append_column(name, pa.array(checked, pa.int64(), mask=is_missing))
    return table


def _raw_file(raw: Path) -> Path:
    if raw.is_dir():
        return file_among(Avazu.name, raw, ["train.csv", "train"], _WAY_OUT)
    if not raw.exists():
        raise missing_file(Avazu.name, raw, _WAY_OUT)
    return raw
