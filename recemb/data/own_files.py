"""A user's own files: found by patterns, read by their endings."""

import difflib
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recemb.data.parquet import ParquetFiles
from recemb.data.source import Source, missing_file
from recemb.data.text import DelimitedText

TEXT_KEYS = ("delimiter", "column_names", "quote", "null_values", "encoding", "block_bytes")
_PARQUET_ENDINGS = (".parquet", ".pq")


def files_among(data: str, raw: Path, patterns: str | Sequence[str]) -> list[Path]:
    """Return the files of a folder that match, each pattern's in order of name.

    Args:
        data: the data set's name, for messages.
        raw: the folder.
        patterns: file names or patterns, relative to it.

    Raises:
        FileNotFoundError: if nothing matches a pattern.
    """
    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = sorted(glob.glob(str(raw / pattern)))
        if not matches:
            raise missing_file(
                data, raw / pattern, "set data.files, or the raw folder, to where it is"
            )
        paths += [Path(m) for m in matches]
    return paths


def source_of(data: str, paths: Sequence[Path], text: Mapping[str, Any]) -> Source:
    """Return what reads the files.

    Args:
        data: the data set's name, for messages.
        paths: the files.
        text: how text is read, arguments of `DelimitedText`.

    Raises:
        ValueError: if Parquet and text are mixed.
    """
    are_parquet = {p.suffix in _PARQUET_ENDINGS for p in paths}
    if len(are_parquet) > 1:
        raise ValueError(
            f"data '{data}': files mixes Parquet and text; convert one of them or prepare twice"
        )
    return ParquetFiles(paths) if are_parquet == {True} else DelimitedText(paths, **text)


def check_keys(owner: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Check that all keys are known.

    Raises:
        ValueError: if one is not; names the nearest.
    """
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it knows {list(known)}"
            raise ValueError(f"{owner} has no '{key}'; {hint}")
