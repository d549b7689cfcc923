"""Amazon reviews: which product a user reviews next.

A folder holds the reviews of one kind of product and its metadata (`meta_*`), JSON lines, plain or
.gz, as they were released in 2014 (metadata are Python literals there), 2018 or 2023. Every review
is a behaviour, whatever its stars; a product's category is the most specific one of its first path.
Histories are short: the median user of a 5-core set has some eight reviews.

Source: J. McAuley et al., "Image-Based Recommendations on Styles and Substitutes", SIGIR 2015; J.
Ni et al., EMNLP 2019; Y. Hou et al., 2024 (the releases); protocol of DARE, see
`recemb.data.user_log`.

Shapes: `n` reviews of a block, `I` products.
"""

import ast
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from numpy.typing import NDArray
from tqdm import tqdm

from recemb.data.behaviour_set import BehaviourSet
from recemb.data.encoder import MISSING_KEY, keyed
from recemb.data.prepared import Prepared
from recemb.data.source import OnBadLine, bad_line, missing_file
from recemb.data.user_parts import UserParts, prepare_parts

_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_WAY_OUT = (
    "fetch the reviews and the metadata of one kind of product from "
    "https://amazon-reviews-2023.github.io or https://jmcauley.ucsd.edu/data/amazon and point "
    "data.raw at their folder"
)
_BLOCK_BYTES = 1 << 24
# Names of 2014 and 2018, and of 2023.
_REVIEW = pa.schema(
    [
        *((name, pa.string()) for name in ("reviewerID", "user_id", "asin", "parent_asin")),
        *((name, pa.int64()) for name in ("unixReviewTime", "timestamp")),
    ]
)


class Amazon(BehaviourSet):
    """Users' reviews in order of time; `raw` is the folder."""

    name = "amazon"

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the prepared set in `out`, made from `raw` if needed."""
        reviews, metadata = find_files(raw)

        def deal(parts: UserParts) -> dict[str, int]:
            skipped = Counter[str]()
            categories = Categories.of(metadata, self.on_bad_line, skipped)
            with tqdm(
                total=reviews.stat().st_size, desc=f"{self.name}: sorting users", unit="B"
            ) as bar:
                for block in _blocks(reviews):
                    found = _parsed(reviews, block, self.on_bad_line, skipped)
                    items = keyed(found.column("item").combine_chunks()).of_rows()
                    parts.append(
                        {
                            "user": keyed(found.column("user").combine_chunks()).of_rows(),
                            "time": found.column("time").to_numpy(),
                            "item": items,
                            "category": categories.of_items(items),
                        }
                    )
                    bar.update(block.file_bytes)
            return dict(skipped)

        return prepare_parts(
            self.name,
            deal,
            self.protocol,
            out,
            settings={"on_bad_line": self.on_bad_line},
            sources=(reviews, metadata),
            kinds={"item": "string", "category": "string"},
            overwrite=overwrite,
        )


def find_files(folder: Path) -> tuple[Path, Path]:
    """Return the files of the reviews and of the metadata in a folder.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if there are several.
    """
    if not folder.is_dir():
        raise missing_file(Amazon.name, folder, _WAY_OUT)
    files = sorted(path for path in folder.iterdir() if path.name.lower().endswith(_ENDINGS))
    found = []
    for what, is_metadata in (("reviews", False), ("metadata (meta_*)", True)):
        its = [path for path in files if path.name.lower().startswith("meta") == is_metadata]
        if not its:
            raise FileNotFoundError(
                f"data '{Amazon.name}': {folder} holds no {what} in JSON lines; {_WAY_OUT}"
            )
        if len(its) > 1:
            raise ValueError(
                f"data '{Amazon.name}': {folder} holds several files of {what}, "
                f"{[path.name for path in its]}; leave one"
            )
        found.append(its[0])
    return found[0], found[1]


class Categories:
    """The category of each product.

    Args:
        items: (I,) keys of products.
        categories: (I,) keys of their categories.
    """

    def __init__(self, items: NDArray[np.int64], categories: NDArray[np.int64]) -> None:
        self._items, first = np.unique(items, return_index=True)
        self._categories = categories[first]

    @classmethod
    def of(cls, path: Path, on_bad_line: OnBadLine, skipped: Counter[str]) -> "Categories":
        """Return what a file of metadata says; count what is left out.

        Raises:
            ValueError: at the first bad line, unless such lines are to be skipped.
        """
        items, categories = [], []
        with _opened(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    entry = _entry(line)
                    item, category = entry.get("parent_asin") or entry.get("asin"), _leaf(entry)
                    _check_type("asin", item, str)
                    _check_type("category", category, str)
                except ValueError as error:
                    if on_bad_line == "raise":
                        raise bad_line(path, number, str(error)) from error
                    skipped[f"metadata: {error}"] += 1
                    continue
                items.append(item)
                categories.append(category)
        return cls(
            *(keyed(pa.array(values, pa.string())).of_rows() for values in (items, categories))
        )

    def of_items(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the keys (n,) of the categories of products (n,), a missing value's if unknown."""
        if not len(self._items):
            return np.full(len(items), MISSING_KEY, np.int64)
        places = np.minimum(np.searchsorted(self._items, items), len(self._items) - 1)
        return np.where(self._items[places] == items, self._categories[places], MISSING_KEY)


class _Block(NamedTuple):
    """Whole lines of a file, where they begin, and how many bytes of the file they took."""

    lines: bytes
    first_line: int
    file_bytes: int


def _blocks(path: Path) -> Iterator[_Block]:
    with path.open("rb") as raw, _opened(path, raw) as file:
        number, before = 1, 0
        while lines := b"".join(file.readlines(_BLOCK_BYTES)):
            position = raw.tell()
            yield _Block(lines, number, position - before)
            number += lines.count(b"\n")
            before = position


def _parsed(path: Path, block: _Block, on_bad_line: OnBadLine, skipped: Counter[str]) -> pa.Table:
    """Return user, item and time of the reviews of a block; count what is left out.

    Raises:
        ValueError: at the first bad line, unless such lines are to be skipped.
    """
    lines = [line for line in block.lines.split(b"\n") if line.strip()]
    try:
        table, numbers = _read(lines), _numbers_of(block)
        is_whole = table.num_rows == len(numbers)
    except pa.ArrowInvalid:
        is_whole = False
    if not is_whole:
        # Some line is no object, or is broken inside: each is parsed by itself.
        table, numbers = _one_by_one(path, block, on_bad_line, skipped)
    columns = {
        "user": pc.coalesce(table.column("reviewerID"), table.column("user_id")),
        "item": pc.coalesce(table.column("parent_asin"), table.column("asin")),
        "time": pc.coalesce(table.column("unixReviewTime"), table.column("timestamp")),
    }
    found = pa.table(columns)
    for name in columns:
        is_missing = found.column(name).is_null().to_numpy()
        if is_missing.any() and on_bad_line == "raise":
            raise bad_line(path, numbers[int(is_missing.argmax())], f"the {name} is missing")
        if is_missing.any():
            skipped[f"the {name} is missing"] += int(is_missing.sum())
            numbers = [n for n, bad in zip(numbers, is_missing, strict=True) if not bad]
            found = found.filter(pa.array(~is_missing))
    return found.combine_chunks()


def _read(lines: Sequence[bytes]) -> pa.Table:
    options = pa.json.ParseOptions(explicit_schema=_REVIEW, unexpected_field_behavior="ignore")
    return pa.json.read_json(io.BytesIO(b"\n".join(lines)), parse_options=options)


def _numbers_of(block: _Block) -> list[int]:
    """Return the numbers of the lines that are not blank."""
    lines = block.lines.split(b"\n")
    return [number for number, line in enumerate(lines, start=block.first_line) if line.strip()]


def _one_by_one(
    path: Path, block: _Block, on_bad_line: OnBadLine, skipped: Counter[str]
) -> tuple[pa.Table, list[int]]:
    """Return the reviews that can be read, and the numbers of their lines; count the others."""
    rows, numbers = [], []
    for number, line in enumerate(block.lines.split(b"\n"), start=block.first_line):
        if not line.strip():
            continue
        try:
            rows.append(_review(line))
            numbers.append(number)
        except ValueError as error:
            if on_bad_line == "raise":
                raise bad_line(path, number, str(error)) from error
            skipped[str(error)] += 1
    return pa.Table.from_pylist(rows, schema=_REVIEW), numbers


def _review(line: bytes) -> dict[str, Any]:
    """Return what counts of a review.

    Raises:
        ValueError: if the line is no JSON object, or a value is of another type.
    """
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError("the line is no JSON object") from error
    if not isinstance(entry, dict):
        raise ValueError("the line is no JSON object")
    for field in _REVIEW:
        _check_type(field.name, entry.get(field.name), int if field.type == pa.int64() else str)
    return {field.name: entry.get(field.name) for field in _REVIEW}


def _check_type(name: str, value: object, kind: type) -> None:
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        what = "whole number" if kind is int else "text"
        raise ValueError(f"{name} is no {what}")


def _entry(line: bytes) -> dict[str, Any]:
    """Return a product's metadata, JSON or, as in 2014, a Python literal.

    Raises:
        ValueError: if it is neither.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError("the line is no UTF-8") from error
    try:
        entry = json.loads(text)
    except json.JSONDecodeError:
        try:
            entry = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise ValueError("the line is neither JSON nor a literal") from error
    if not isinstance(entry, dict):
        raise ValueError("the line is no object")
    return cast("dict[str, Any]", entry)


def _leaf(entry: dict[str, Any]) -> str | None:
    """Return the most specific category of a product's first path."""
    path = entry.get("category") or entry.get("categories") or []
    if path and isinstance(path[0], list):
        path = path[0]
    return str(path[-1]) if path else entry.get("main_category")


def _opened(path: Path, raw: BinaryIO | None = None) -> BinaryIO:
    if path.name.endswith(".gz"):
        return cast("BinaryIO", gzip.open(path if raw is None else raw, "rb"))
    return path.open("rb") if raw is None else raw
