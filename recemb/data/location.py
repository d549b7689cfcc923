"""Where the raw files of a data set lie: under the publisher's names, plain or packed."""

from collections.abc import Sequence
from pathlib import Path

from recemb.data.source import missing_file


def one_of(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first file in `folder` with one of `names`, or one of them and .gz, or None."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def file_among(data: str, folder: Path, names: Sequence[str], way_out: str) -> Path:
    """Return the file in `folder` with one of `names`, or with one of them and .gz.

    Args:
        data: the data set's name, for messages.
        folder: where to look.
        names: in order of preference.
        way_out: where the files come from, to end the message.

    Raises:
        FileNotFoundError: if there is no such folder or no such file in it.
        ValueError: if `folder` is a file.
    """
    if not folder.exists():
        raise missing_file(data, folder, way_out)
    if not folder.is_dir():
        raise ValueError(
            f"data '{data}': {folder} is a file, but raw must be the folder with {names[0]} and "
            f"the others; {way_out}"
        )
    if path := one_of(folder, names):
        return path
    wanted = " or ".join(names)
    raise FileNotFoundError(f"data '{data}': {folder} holds no {wanted}, plain or .gz; {way_out}")
