"""What users did, once in order of time, and cut into histories of examples.

Shapes: `B` examples, `M` behaviours of all users, `L` ids of all histories of a batch.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recemb.data.schema import Schema

Spans = NDArray[np.int64]
"""(B, 2) the first behaviour of each history and the one after its last."""


class Behaviours:
    """The behaviours of all users.

    Args:
        columns: (M,) ids of each history that is not counted, by its name.
        schema: says which histories there are.
    """

    def __init__(self, columns: Mapping[str, NDArray[np.int32]], schema: Schema) -> None:
        self._histories = schema.histories
        self._columns = columns

    @classmethod
    def stored(cls, folder: Path, schema: Schema) -> Self:
        """Return the memory-mapped behaviours of a prepared set; only those asked for are read.

        Args:
            folder: holds a file for each stored history; not read if the schema has none.
            schema: says which histories there are.
        """
        names = [h.name for h in schema.histories if not h.is_position]
        return cls({name: _map(folder / f"{j}.i32") for j, name in enumerate(names)}, schema)

    def gather(self, spans: Spans) -> tuple[NDArray[np.int64], Iterator[NDArray[np.int32]]]:
        """Return the lengths (B,) of histories, and the ids (L,) of each of the schema's.

        Args:
            spans: where the histories begin and end.
        """
        lengths = spans[:, 1] - spans[:, 0]
        return lengths, self._ids(spans, lengths)

    def _ids(self, spans: Spans, lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int32]]:
        ends = np.cumsum(lengths)
        places = np.arange(int(lengths.sum()))
        rows = places + np.repeat(spans[:, 1] - ends, lengths)
        for history in self._histories:
            if history.is_position:
                yield (np.repeat(ends, lengths) - places).astype(np.int32)
            else:
                yield self._columns[history.name][rows]


def history_counts(
    spans: Spans, num_behaviours: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return in how many histories each behaviour (M,) is, and how many have each length.

    Args:
        spans: (n, 2), of any number of examples.
        num_behaviours: M.
    """
    changes = np.zeros(num_behaviours + 1, np.int64)
    np.add.at(changes, spans[:, 0], 1)
    np.add.at(changes, spans[:, 1], -1)
    return np.cumsum(changes)[:-1], np.bincount(spans[:, 1] - spans[:, 0])


def _map(path: Path) -> NDArray[np.int32]:
    if not path.stat().st_size:
        return np.empty(0, np.int32)
    return np.asarray(np.memmap(path, dtype="<i4", mode="r"))
