"""The interface of a data set: raw files to prepared columns, and from there to batches."""

import abc
from pathlib import Path

from recemb.data.prepared import Prepared


class Dataset(abc.ABC):
    """Raw files that recemb knows how to prepare; a subclass's constructor is its YAML.

    Attributes:
        name: the data set's name, used in messages and folder names.
    """

    name: str

    @abc.abstractmethod
    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the prepared form of the raw files under `raw`, writing it to `out` if needed.

        A complete set in `out` whose recorded sources and settings still hold is opened as it is;
        an interrupted one is continued or started again. Nothing that is half written ever opens.

        Args:
            raw: folder (or file) of the raw data; unused by generators.
            out: folder of the prepared data.
            overwrite: prepare again whatever is in `out`.

        Raises:
            FileNotFoundError: if a raw file is missing; the message says where it was sought and
                how to get it.
            ValueError: if a raw file is malformed, with file, line, column, value and the way out,
                or if `out` was prepared from raw files that have changed since.
        """
