"""Data sets of users' behaviours: what they share, which is DARE's protocol.

See `recemb.data.user_log` for the protocol.
"""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from recemb.data.dataset import Dataset
from recemb.data.location import file_among
from recemb.data.prepared import Prepared
from recemb.data.source import OnBadLine, Source
from recemb.data.user_log import Group, Protocol
from recemb.data.user_parts import prepare_log


class BehaviourSet(Dataset):
    """Samples of the next behaviour.

    Args:
        max_history: behaviours of a history at most, the most recent ones.
        min_behaviours: users with fewer are left out.
        num_positives: training positives of a user, at most.
        stride: behaviours from one of them to the next.
        num_negatives: negatives of each positive.
        min_history: a positive with fewer behaviours before it is left out.
        min_count: an item gets an id from this many behaviours on.
        group: what GAUC groups by: "user", or the "category" of the target.
        seed: of the negatives.
        on_bad_line: "raise" at the first bad line, or "skip" and count them.

    Raises:
        ValueError: on an unknown word or a number out of range.
    """

    def __init__(
        self,
        *,
        max_history: int,
        min_behaviours: int,
        num_positives: int = 19,
        stride: int = 5,
        num_negatives: int = 2,
        min_history: int = 1,
        min_count: int = 1,
        group: Group = "user",
        seed: int = 0,
        on_bad_line: OnBadLine = "raise",
    ) -> None:
        self.protocol = Protocol(
            max_history=max_history,
            min_behaviours=min_behaviours,
            num_positives=num_positives,
            stride=stride,
            num_negatives=num_negatives,
            min_history=min_history,
            min_count=min_count,
            group=group,
            seed=seed,
        )
        self.on_bad_line: OnBadLine = on_bad_line


class BehaviourFile(BehaviourSet):
    """One text file with a line for each behaviour; `raw` is the file, plain or .gz, or its folder.

    Read out of core, see `recemb.data.user_parts`.

    Class attributes:
        file: its name.
        columns: the raw columns of user, time, item and category.
        only: a raw column, and its value in the lines that count.
        way_out: where the file comes from, to end a message.
    """

    file: ClassVar[str]
    columns: ClassVar[Mapping[str, str]]
    only: ClassVar[tuple[str, str]]
    way_out: ClassVar[str]

    @abc.abstractmethod
    def source(self, path: Path) -> Source:
        """Return what reads the file."""

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the prepared set in `out`, made from `raw` if needed."""
        path = raw if raw.is_file() else file_among(self.name, raw, [self.file], self.way_out)
        return prepare_log(
            self.name,
            self.source(path),
            self.protocol,
            out,
            columns=self.columns,
            only=self.only,
            on_bad_line=self.on_bad_line,
            overwrite=overwrite,
        )
