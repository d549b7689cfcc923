"""Address steps that tell a few listed ids from all others, without a number for every id.

Tables that share one list number their ids from `first` on: the key of id i is i + first.

Shapes: `N` ids, `L` keys of a sorted list, `K` buckets of `S` slots.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from recemb.kernels.hashing import reference

if TYPE_CHECKING:
    from recemb.tables.program import Buffers

NO_KEY = -1
"""The key of an empty slot."""

UNMARKED, MARKED = -1, -2
"""Rows of slots whose key has none of its own: without a mark, and with it."""

Gives = Literal["place", "mark", "row"]
"""Of a listed id its place in the list, others following all places, or having none ("row"); or
whether it is listed."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Looks ids up in a sorted list of keys.

    "place" gives the place in the list, and size + id for other ids; "mark" gives 1 + id for a
    listed id, and 0 for others. Either is for a `Hash` to follow, which keeps small numbers. "row"
    gives the place, and -1, no row at all, for other ids.

    Attributes:
        keys: buffer (L,), int32 or int64, sorted; unused places hold the type's largest value.
        size: L.
        first: see the module.
        gives: see above.

    Raises:
        ValueError: on an unknown word or a negative number.
    """

    keys: str
    size: int
    first: int = 0
    gives: Gives = "place"

    def __post_init__(self) -> None:
        _check(self.gives, self.size, self.first)

    def __str__(self) -> str:
        return f"{self.gives} in {self.keys}"

    def apply(self, ids: Tensor, buffers: "Buffers") -> Tensor:
        """Return the numbers (N,)."""
        listed, ids = buffers[self.keys], ids.long()
        keys = (ids + self.first).to(listed.dtype)
        place = torch.searchsorted(listed, keys)
        found = listed[place.clamp(max=self.size - 1)] == keys
        if self.gives == "mark":
            return torch.where(found, ids + 1, 0)
        return torch.where(found, place, -1 if self.gives == "row" else ids + self.size)

    def limit(self, limit: int | None, sizes: Mapping[str, int]) -> int | None:
        """Return one more than the largest number."""
        return _limit(self.gives, self.size, limit)


@dataclass(frozen=True, kw_only=True)
class Bucketed:
    """Looks ids up in buckets of keys, which may change while tables train.

    A key lies in the bucket of its hash, if anywhere. "place" gives the row of its slot, and
    size + id for ids without a row ("row": -1); "mark" gives 1 + id where the slot's row is MARKED,
    else 0.

    Attributes:
        keys: buffer (K, S), int32 or int64; NO_KEY for an empty slot.
        rows: buffer (K, S) int32, the row of each slot's key, below `size`; or (UN)MARKED.
        size: number of rows that keys may have.
        seed: of the hash of keys, 32-bit.
        first: see the module.
        gives: see above.

    Raises:
        ValueError: on an unknown word or a negative number.
    """

    keys: str
    rows: str
    size: int
    seed: int
    first: int = 0
    gives: Gives = "place"

    def __post_init__(self) -> None:
        _check(self.gives, self.size, self.first)

    def __str__(self) -> str:
        return f"{self.gives} in buckets {self.keys}"

    def apply(self, ids: Tensor, buffers: "Buffers") -> Tensor:
        """Return the numbers (N,)."""
        ids = ids.long()
        _, row = find_slots(buffers[self.keys], buffers[self.rows], ids + self.first, self.seed)
        if self.gives == "mark":
            return torch.where(row == MARKED, ids + 1, 0)
        return torch.where(row >= 0, row.long(), -1 if self.gives == "row" else ids + self.size)

    def limit(self, limit: int | None, sizes: Mapping[str, int]) -> int | None:
        """Return one more than the largest number."""
        return _limit(self.gives, self.size, limit)


def find_slots(keys: Tensor, rows: Tensor, wanted: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the slot (N,) of each key, numbered through all buckets, -1 for none, and its row.

    Args:
        keys: (K, S).
        rows: (K, S).
        wanted: (N,) int64 keys.
        seed: of their hash.
    """
    num_buckets, num_slots = keys.shape
    bucket = reference.hash_rows(wanted, seed, num_buckets)
    hits = keys[bucket] == wanted.unsqueeze(1)
    slot = bucket * num_slots + hits.int().argmax(dim=1)
    is_found = hits.any(dim=1)
    row = torch.where(is_found, rows.view(-1)[slot], UNMARKED)
    return torch.where(is_found, slot, -1), row


def _check(gives: Gives, size: int, first: int) -> None:
    if gives not in get_args(Gives):
        raise ValueError(f"listed ids: gives must be place, mark or row, got '{gives}'")
    if size < 1 or first < 0:
        raise ValueError(
            f"listed ids: size must be at least 1 and first not negative, got {size} and {first}"
        )


def _limit(gives: Gives, size: int, limit: int | None) -> int | None:
    if limit is None:
        return None
    return {"place": size + limit, "mark": 1 + limit, "row": size}[gives]
