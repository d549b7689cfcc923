"""Your own log of behaviours, described by configuration alone."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from recemb.data.dataset import Dataset
from recemb.data.own_files import TEXT_KEYS, check_keys, files_among, source_of
from recemb.data.prepared import Prepared
from recemb.data.source import OnBadLine
from recemb.data.user_log import KeyKind, Protocol
from recemb.data.user_parts import prepare_log

_COLUMNS = ("user", "time", "item", "category")


class BehaviourLog(Dataset):
    """Delimited text or Parquet with a row for each behaviour; `raw` is its folder.

    Read out of core, see `recemb.data.user_parts`; behaviours of one time keep the order of the
    rows.

    Args:
        files: file names or patterns, relative to the folder.
        columns: the raw columns of `user`, `time` (whole numbers), `item` and `category`.
        keys: "int" if users, items and categories are whole numbers, "string" if they are text.
        only: a raw column and the value it has in the rows that count, `{event: view}`; None where
            all rows do.
        text: how text is read, the arguments of `DelimitedText`; not used for Parquet.
        on_bad_line: "raise" at the first bad line, or "skip" and count them.
        protocol: how samples are made, the fields of `recemb.data.user_log.Protocol`.

    Raises:
        ValueError: on an unknown word or key, a column that is missing or a number out of range.
    """

    name = "behaviours"

    def __init__(
        self,
        *,
        files: Sequence[str],
        columns: Mapping[str, str],
        keys: KeyKind = "int",
        only: Mapping[str, str | int | None] | None = None,
        text: Mapping[str, Any] | None = None,
        on_bad_line: OnBadLine = "raise",
        protocol: Mapping[str, Any] | None = None,
    ) -> None:
        settings = dict(protocol or {})
        known = [field.name for field in fields(Protocol)]
        check_keys(f"data '{self.name}': protocol", settings, known)
        self.protocol = Protocol(**settings)
        self.on_bad_line: OnBadLine = on_bad_line
        check_keys(f"data '{self.name}': columns", columns, _COLUMNS)
        if lacking := [name for name in _COLUMNS if name not in columns]:
            raise ValueError(f"data '{self.name}': columns says nothing of {lacking}; name them")
        if keys not in get_args(KeyKind):
            raise ValueError(f"data '{self.name}': keys must be int or string, got '{keys}'")
        if only is not None and len(only) != 1:
            raise ValueError(
                f"data '{self.name}': only is one column and its value, such as {{event: view}}, "
                f"got {dict(only)}"
            )
        self.files = files
        self.columns = dict(columns)
        self.keys: KeyKind = keys
        self.only = None
        if only is not None:
            ((column, value),) = only.items()
            if value is None or isinstance(value, bool):
                raise ValueError(
                    f"data '{self.name}': only: {column} must be a word or a number as the file "
                    f"has it, got {value!r}; write it in quotes, {{{column}: 'true'}}"
                )
            self.only = (column, str(value))  # it is compared with the text of the file
        self.text = dict(text or {})
        check_keys(f"data '{self.name}': text", self.text, TEXT_KEYS)

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the prepared set in `out`, made from the files under `raw` if needed."""
        paths = files_among(self.name, raw, self.files)
        return prepare_log(
            self.name,
            source_of(self.name, paths, self.text),
            self.protocol,
            out,
            columns=self.columns,
            only=self.only,
            on_bad_line=self.on_bad_line,
            overwrite=overwrite,
            keys=self.keys,
        )
