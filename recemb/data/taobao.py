"""Taobao: which item a user views next.

`UserBehavior.csv` has no header: user, item, category, behaviour (pv, buy, cart, fav), second. Only
page views count.

Source: H. Zhu et al., "Learning Tree-based Deep Model for Recommender Systems", KDD 2018 (the
release); protocol of DARE, see `recemb.data.user_log`.
"""

from pathlib import Path
from typing import ClassVar

from recemb.data.behaviour_set import BehaviourFile
from recemb.data.source import Source
from recemb.data.text import DelimitedText

_NAMES = ("user", "item", "category", "behaviour", "timestamp")


class Taobao(BehaviourFile):
    """Users' page views in order of time."""

    name = "taobao"
    file = "UserBehavior.csv"
    columns: ClassVar = {
        "user": "user",
        "time": "timestamp",
        "item": "item",
        "category": "category",
    }
    only = ("behaviour", "pv")
    way_out = (
        "fetch UserBehavior.csv from https://tianchi.aliyun.com/dataset/649 and point data.raw at "
        "it or at its folder"
    )

    def source(self, path: Path) -> Source:
        """Return what reads the file."""
        return DelimitedText([path], column_names=_NAMES)
