"""Your own CSV or Parquet files, described by configuration alone."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from recemb.data.column import CategoricalColumn, Columns, DenseColumn, LabelColumn
from recemb.data.dataset import Dataset
from recemb.data.own_files import TEXT_KEYS, check_keys, files_among, source_of
from recemb.data.pipeline import Description, prepare
from recemb.data.prepared import Prepared
from recemb.data.source import OnBadLine
from recemb.data.split import ByFile, ByRatio, ByTime, ByValue, Split

_SPLIT_RULES: Mapping[str, tuple[str, ...]] = {
    "files": (),
    "ratio": ("val", "test", "seed"),
    "value": ("column", "train", "val", "test"),
    "time": ("val", "test", "column"),
}

Column = TypeVar("Column", DenseColumn, CategoricalColumn)


class Table(Dataset):
    """Any delimited text or Parquet files.

    Args:
        label: the label's column, of 0 and 1; or the fields of `LabelColumn`, `{name: rating,
            threshold: 4}`, for numbers of which those from the threshold on are positive.
        dense: for each dense feature its transform, or the fields of `DenseColumn`.
        categorical: for each categorical feature its encoding, or the fields of
            `CategoricalColumn`.
        group: the column that GAUC groups by, or None.
        split: `{rule: files}` takes the files' split from `files`; `{rule: ratio, val:, test:,
            seed:}` draws rows; `{rule: value, column:, train: [...], val: [...], test: [...]}` goes
            by a column's values; `{rule: time, val:, test:, column:}` goes by time, or by the order
            of the lines without a column.
        files: file names or patterns, relative to the raw folder: a list, or lists by split.
        text: how text files are read, the arguments of `DelimitedText`; not used for Parquet.
        on_bad_line: "raise" or "skip".

    Raises:
        ValueError: on an unknown key or choice; the message names the nearest that exists.
    """

    name = "table"

    def __init__(
        self,
        *,
        label: str | Mapping[str, Any],
        files: Sequence[str] | Mapping[str, Sequence[str]],
        dense: Mapping[str, str | Mapping[str, Any]] | None = None,
        categorical: Mapping[str, str | Mapping[str, Any]] | None = None,
        split: Mapping[str, Any] | None = None,
        group: str | None = None,
        text: Mapping[str, Any] | None = None,
        on_bad_line: OnBadLine = "raise",
    ) -> None:
        self.columns = Columns(
            label=_label(label),
            dense=_described(DenseColumn, "transform", dense or {}),
            categorical=_described(CategoricalColumn, "encoding", categorical or {}),
            group=group,
        )
        if not self.columns.dense and not self.columns.categorical:
            raise ValueError(
                "data 'table': neither dense nor categorical names a column; describe at least one"
            )
        self.files = files
        self.split = dict(split or {"rule": "ratio", "val": 0.1, "test": 0.1})
        self._check_split()
        self.text = dict(text or {})
        check_keys("data 'table': text", self.text, TEXT_KEYS)
        self.on_bad_line = on_bad_line

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the prepared form of the files under `raw`, writing it to `out` if needed."""
        by_split = {
            split: files_among(self.name, raw, patterns)
            for split, patterns in self._patterns().items()
        }
        paths = [path for group in by_split.values() for path in group]
        description = Description(
            name=self.name,
            source=source_of(self.name, paths, self.text),
            columns=self.columns,
            split=self._split_rule(by_split),
            on_bad_line=self.on_bad_line,
        )
        return prepare(description, out, overwrite=overwrite)

    def _patterns(self) -> dict[str, Sequence[str]]:
        if isinstance(self.files, Mapping):
            return dict(self.files)
        return {"all": self.files}

    def _check_split(self) -> None:
        rule = str(self.split.get("rule"))
        if rule not in _SPLIT_RULES:
            raise ValueError(
                f"data 'table': split.rule must be one of {list(_SPLIT_RULES)}, got '{rule}'"
            )
        check_keys(f"data 'table': split '{rule}'", self.split, ("rule", *_SPLIT_RULES[rule]))
        if (rule == "files") != isinstance(self.files, Mapping):
            raise ValueError(
                "data 'table': with split.rule=files, files lists file names by split "
                "({train: [...], val: [...], test: [...]}); with another rule it is one list"
            )

    def _split_rule(self, by_split: Mapping[str, Sequence[Path]]) -> Split:
        given = {k: v for k, v in self.split.items() if k != "rule"}
        match self.split["rule"]:
            case "files":
                return ByFile(by_split)
            case "ratio":
                return ByRatio(**given)
            case "time":
                return ByTime(**given)
        return ByValue(given.pop("column"), given)


def _label(given: str | Mapping[str, Any]) -> LabelColumn:
    if isinstance(given, str):
        return LabelColumn(name=given)
    check_keys("data 'table': label", given, ("name", "threshold"))
    return LabelColumn(**given)


def _described(
    kind: type[Column], short_field: str, given: Mapping[str, str | Mapping[str, Any]]
) -> tuple[Column, ...]:
    """Return the columns described by name: by one word, or by fields."""
    known = tuple(f.name for f in fields(kind) if f.name != "name")
    columns = []
    for name, description in given.items():
        state = {short_field: description} if isinstance(description, str) else dict(description)
        check_keys(f"data 'table': feature '{name}'", state, known)
        columns.append(kind(name=name, **state))
    return tuple(columns)
