"""An address step of rows that lie in blocks, some of which are shared.

Shapes: `N` ids, `B` blocks of ids, `U` blocks of rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from recemb.tables.program import Buffers


@dataclass(frozen=True, kw_only=True)
class Blocked:
    """Block id // block_rows lies where a buffer says; within a block nothing moves.

    row = buffer[id // block_rows] * block_rows + id % block_rows

    Attributes:
        buffer: its name among the tables' buffers, (B,) of any integer type, each below U.
        block_rows: ids of a block, at least 1.

    Raises:
        ValueError: if `block_rows` is below 1.
    """

    buffer: str
    block_rows: int

    def __post_init__(self) -> None:
        if self.block_rows < 1:
            raise ValueError(f"Blocked: block_rows must be at least 1, got {self.block_rows}")

    def __str__(self) -> str:
        return (
            f"{self.buffer}[id // {self.block_rows}] * {self.block_rows} + id % {self.block_rows}"
        )

    def apply(self, ids: Tensor, buffers: "Buffers") -> Tensor:
        """Return the rows (N,)."""
        block = torch.div(ids, self.block_rows, rounding_mode="floor")
        first = buffers[self.buffer].index_select(0, block).long() * self.block_rows
        return first + torch.remainder(ids, self.block_rows)

    def limit(self, limit: int | None, sizes: Mapping[str, int]) -> int | None:
        """Return one more than the largest row that a block may have."""
        num_blocks = sizes.get(self.buffer)
        return None if num_blocks is None else num_blocks * self.block_rows
