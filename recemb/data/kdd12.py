"""KDD Cup 2012, track 2: ads beside the results of Tencent's search engine soso.com.

`training.txt` (149,639,105 lines, tab-separated, no header) does not list impressions: each line
sums up those of one ad for one user, query and position, `impression` of them, of which `click`
were clicked. A line is one example here, positive if it was clicked at all, as in the papers that
report log loss and AUC on this set (AutoInt and others); the number of impressions is no feature,
because it is only known afterwards. The lines are in no order of time.

Source: KDD Cup 2012, Track 2 (https://www.kaggle.com/c/kddcup2012-track2); use as in W. Song et
al., "AutoInt", CIKM 2019.
"""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recemb.data.column import CategoricalColumn, Columns, LabelColumn
from recemb.data.dataset import Dataset
from recemb.data.location import file_among
from recemb.data.pipeline import Description
from recemb.data.pipeline import prepare as prepare_description
from recemb.data.prepared import Prepared
from recemb.data.source import Chunk, Derivation, OnBadLine, bad_line, missing_file
from recemb.data.split import ByRatio
from recemb.data.text import DelimitedText

FEATURES = (
    *("display_url", "ad_id", "advertiser_id", "depth", "position"),
    *("query_id", "keyword_id", "title_id", "description_id", "user_id"),
)

PROFILE = {"gender": 3, "age": 7}
"""What is known of users, with the numbers of ids; 0 is unknown, ages are six groups."""

_WAY_OUT = (
    "fetch track2.zip from https://www.kaggle.com/c/kddcup2012-track2/data, unpack it, and point "
    "data.raw at training.txt or at its folder"
)


class KDD12(Dataset):
    """`training.txt`, plain or .gz, and `userid_profile.txt` beside it if wanted.

    `raw` is the file or its folder.

    Args:
        num_embeddings: None gives each feature a vocabulary; a number hashes the features into so
            many ids each, without a first pass. Gender and age are ids already.
        min_count: a value gets an id from this many training occurrences on; vocabularies only.
            AutoInt has 10.
        with_profile: whether to add the user's gender and age. While preparing, this takes about
            40 bytes per line of `userid_profile.txt`, which has some 24 million.
        val: share of the lines for validation, drawn by `seed`; 8:1:1 is AutoInt's.
        test: share of the lines for the test.
        seed: of the draw and of hashing.
        group: the column that GAUC groups by, such as user_id, or None.
        on_bad_line: "raise" at the first bad line, or "skip" and count them.

    Raises:
        ValueError: if a number is out of range.
    """

    name = "kdd12"

    def __init__(
        self,
        *,
        num_embeddings: int | None = None,
        min_count: int = 10,
        with_profile: bool = False,
        val: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        group: str | None = None,
        on_bad_line: OnBadLine = "raise",
    ) -> None:
        is_hashed = num_embeddings is not None
        log = [
            CategoricalColumn(
                name=name,
                encoding="hash" if is_hashed else "vocabulary",
                num_embeddings=num_embeddings,
                min_count=1 if is_hashed else min_count,
                # URLs are hashes of 64 bits without a sign, which int64 does not hold.
                kind="string" if name == "display_url" else "int",
            )
            for name in FEATURES
        ]
        profile = [
            CategoricalColumn(name=name, encoding="ids", num_embeddings=n)
            for name, n in PROFILE.items()
            if with_profile
        ]
        self.columns = Columns(
            label=LabelColumn(name="click", threshold=1.0),
            categorical=(*log, *profile),
            group=group,
        )
        self.split = ByRatio(val=val, test=test, seed=seed)
        self.with_profile = with_profile
        self.seed = seed
        self.on_bad_line = on_bad_line

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the prepared set in `out`, made from `raw` if needed."""
        file = _raw_file(raw)
        description = Description(
            name=self.name,
            source=DelimitedText(
                [file],
                delimiter="\t",
                column_names=("click", "impression", *FEATURES),
                quote=None,
                derivation=self._derivation(file.parent) if self.with_profile else None,
            ),
            columns=self.columns,
            split=self.split,
            on_bad_line=self.on_bad_line,
            seed=self.seed,
        )
        return prepare_description(description, out, overwrite=overwrite)

    def _derivation(self, folder: Path) -> Derivation:
        file = file_among(self.name, folder, ["userid_profile.txt"], _WAY_OUT)
        return Derivation(
            name="profile 1",
            inputs={"user_id": "int"},
            outputs=tuple(PROFILE),
            apply=Profiles(file).join,
            files=(file,),
        )


class Profiles:
    """Gender and age of users, read when first needed.

    Args:
        file: `userid_profile.txt`: user, gender and age, tab-separated.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._users: NDArray[np.int64] | None = None
        self._values: dict[str, NDArray[np.int8]] = {}

    def join(self, table: pa.Table) -> pa.Table:
        """Return `table` with the profile of each `user_id`; 0 where there is none."""
        with self._lock:  # blocks are parsed by several threads
            users = self._users = self._read() if self._users is None else self._users
        wanted = table.column("user_id").combine_chunks().fill_null(-1).to_numpy()
        places = np.minimum(np.searchsorted(users, wanted), max(len(users) - 1, 0))
        is_known = users[places] == wanted
        for name, values in self._values.items():
            found = np.where(is_known, values[places], 0)
            table = table.append_column(name, pa.array(found, pa.int64()))
        return table

    def _read(self) -> NDArray[np.int64]:
        """Read the file and return its users in ascending order."""
        source = DelimitedText(
            [self.file], delimiter="\t", column_names=("user_id", *PROFILE), quote=None
        )
        users: list[NDArray[np.int64]] = []
        values: dict[str, list[NDArray[np.int8]]] = {name: [] for name in PROFILE}
        for chunk in source.chunks({"user_id": "int", "gender": "int", "age": "int"}, "raise"):
            users.append(_column(chunk, "user_id", 2**63 - 1))
            for name, limit in PROFILE.items():
                values[name].append(_column(chunk, name, limit).astype(np.int8))
        all_users = np.concatenate(users)
        order = np.argsort(all_users, kind="stable")
        self._values = {name: np.concatenate(parts)[order] for name, parts in values.items()}
        return all_users[order]


def _column(chunk: Chunk, name: str, limit: int) -> NDArray[np.int64]:
    """Return a column whose values must be in [0, limit)."""
    values: NDArray[np.int64] = (
        chunk.table.column(name).combine_chunks().fill_null(-1).to_numpy().astype(np.int64)
    )
    wrong = np.flatnonzero((values < 0) | (values >= limit))
    if wrong.size:
        raise bad_line(
            chunk.file,
            int(chunk.lines[wrong[0]]),
            f"column '{name}' has value '{chunk.table.column(name)[int(wrong[0])].as_py()}', "
            f"which is not in [0, {limit})",
        )
    return values


def _raw_file(raw: Path) -> Path:
    if raw.is_dir():
        return file_among(KDD12.name, raw, ["training.txt"], _WAY_OUT)
    if not raw.exists():
        raise missing_file(KDD12.name, raw, _WAY_OUT)
    return raw
