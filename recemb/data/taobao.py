"""Taobao: which item a user views next.

`UserBehavior.csv` has no header: user, item, category, behaviour (pv, buy, cart, fav), second. Only
page views count. Read out of core, see `recemb.data.user_parts`.

Source: H. Zhu et al., "Learning Tree-based Deep Model for Recommender Systems", KDD 2018 (the
release); protocol of DARE, see `recemb.data.user_log`.
"""

from pathlib import Path

from recemb.data.dataset import Dataset
from recemb.data.location import file_among
from recemb.data.prepared import Prepared
from recemb.data.source import OnBadLine
from recemb.data.text import DelimitedText
from recemb.data.user_log import Group, Protocol
from recemb.data.user_parts import prepare_log

_FILE = "UserBehavior.csv"
_COLUMNS = {"user": "user", "time": "timestamp", "item": "item", "category": "category"}
_NAMES = ("user", "item", "category", "behaviour", "timestamp")
_WAY_OUT = (
    "fetch UserBehavior.csv from https://tianchi.aliyun.com/dataset/649 and point data.raw at it "
    "or at its folder"
)


class Taobao(Dataset):
    """Users' page views in order of time; `raw` is the file, plain or .gz, or its folder.

    Args:
        max_history: behaviours of a history at most.
        min_behaviours: users with fewer are left out.
        num_positives: training positives of a user, at most.
        stride: behaviours from one of them to the next.
        num_negatives: negatives of each positive.
        min_count: an item gets an id from this many behaviours on.
        group: what GAUC groups by: "user", or the "category" of the target.
        seed: of the negatives.
        on_bad_line: "raise" at the first bad line, or "skip" and count them.

    Raises:
        ValueError: on an unknown word or a number out of range.
    """

    name = "taobao"

    def __init__(
        self,
        *,
        max_history: int = 200,
        min_behaviours: int = 210,
        num_positives: int = 19,
        stride: int = 5,
        num_negatives: int = 2,
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
            min_count=min_count,
            group=group,
            seed=seed,
        )
        self.on_bad_line: OnBadLine = on_bad_line

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the prepared set in `out`, made from `raw` if needed."""
        file = raw if raw.is_file() else file_among(self.name, raw, [_FILE], _WAY_OUT)
        return prepare_log(
            self.name,
            DelimitedText([file], column_names=_NAMES),
            self.protocol,
            out,
            columns=_COLUMNS,
            only=("behaviour", "pv"),
            on_bad_line=self.on_bad_line,
            overwrite=overwrite,
        )
