"""An address step for tables of which some rows are left: a bit for every id.

The rows that are left keep their order, so that the row of an id is the number of those before it.
For each word of 64 bits the rows before it are kept: 12 bytes for 64 ids.

Shapes: `n` ids, `N` ids that are looked up.

Source: rank over blocks is Jacobson's, "Space-efficient static trees and graphs", FOCS 1989.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from recemb.tables.program import Buffers

_WORD = 64


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """The rank of the id among those whose bit is set, -1, no row at all, for the others.

    Attributes:
        words: buffer (ceil(n / 64),) int64, the bits of 64 ids each, the lowest first.
        ranks: buffer (ceil(n / 64),) int32, how many bits are set before each word.
        size: how many are set.

    Raises:
        ValueError: if `size` is negative.
    """

    words: str
    ranks: str
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"Ranked: size must not be negative, got {self.size}")

    def __str__(self) -> str:
        return f"rank in {self.words}"

    def apply(self, ids: Tensor, buffers: "Buffers") -> Tensor:
        """Return the rows (N,)."""
        ids = ids.long()
        at, bit = ids >> 6, ids & (_WORD - 1)
        word = buffers[self.words].index_select(0, at)
        row = buffers[self.ranks].index_select(0, at) + _ones(word & ((1 << bit) - 1))
        return torch.where((word >> bit) & 1 == 1, row, -1)

    def limit(self, limit: int | None, sizes: Mapping[str, int]) -> int | None:
        """Return the number of rows."""
        return self.size


def ranked_buffers(kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return `words` and `ranks` of flags (n,), on their device."""
    flags = torch.nn.functional.pad(kept.long(), (0, -kept.numel() % _WORD)).view(-1, _WORD)
    places = torch.arange(_WORD, device=kept.device)
    # The sign bit is a bit like the others: sums of different powers of 2 do not overflow it.
    words = (flags << places).sum(dim=1)
    counts = flags.sum(dim=1)
    return words, (counts.cumsum(0) - counts).int()


def ranked_bytes(num_ids: int) -> int:
    """Return the bytes of both buffers."""
    return -(-num_ids // _WORD) * (8 + 4)


def _ones(words: Tensor) -> Tensor:
    """Return how many bits of each int64 are set."""
    pairs = words - ((words >> 1) & 0x5555555555555555)
    nibbles = (pairs & 0x3333333333333333) + ((pairs >> 2) & 0x3333333333333333)
    octets = (nibbles + (nibbles >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (octets * 0x0101010101010101) >> 56
