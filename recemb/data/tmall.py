"""Tmall: which item a user clicks next.

`user_log_format1.csv` has a header: user_id, item_id, cat_id, seller_id, brand_id, time_stamp (day,
as mmdd), action_type (0 click, 1 cart, 2 purchase, 3 favourite). Only clicks count; those of one
day keep the order of the lines.

Source: IJCAI-15 repeat buyers competition (the release); protocol of DARE, see
`recemb.data.user_log`.
"""

from pathlib import Path
from typing import ClassVar

from recemb.data.behaviour_set import BehaviourFile
from recemb.data.source import Source
from recemb.data.text import DelimitedText


class Tmall(BehaviourFile):
    """Users' clicks in order of time."""

    name = "tmall"
    file = "user_log_format1.csv"
    columns: ClassVar = {
        "user": "user_id",
        "time": "time_stamp",
        "item": "item_id",
        "category": "cat_id",
    }
    only = ("action_type", "0")
    way_out = (
        "fetch user_log_format1.csv from https://tianchi.aliyun.com/dataset/42 and point data.raw "
        "at it or at its folder"
    )

    def source(self, path: Path) -> Source:
        """Return what reads the file."""
        return DelimitedText([path])
