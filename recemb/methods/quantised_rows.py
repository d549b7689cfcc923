"""The serving form of quantised tables: integers of a few bits, steps and offsets.

    row(i) = q_i * step + offset

A row's integers are one string of bits, ceil(D b / 8) bytes, so that a row begins at a byte. Steps
are one for all rows or one for each; an offset is one for all values, or there is none.

Shapes: `n` rows of a table, `D` its width, `b` bits, `N` ids, `LB` bytes of a row's integers.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from recemb.kernels.code_bag import pack_codes, row_bytes, unpack_codes
from recemb.methods.stored_source import StoredSource

_CHUNK_ROWS = 1 << 16
_MAX_BITS = 16


class IntegerRange(Protocol):
    """Which integers there are: for all values, or row by row, then (N, 1) tensors."""

    @property
    def low(self) -> int | Tensor:
        """Return the least ones."""
        ...

    @property
    def high(self) -> int | Tensor:
        """Return the largest ones."""
        ...

    def nearest(self, units: Tensor) -> Tensor:
        """Return the nearest integers of units (N, D), as floats; halves go to even ones."""
        ...


@dataclass(frozen=True, kw_only=True)
class Integers:
    """The signed integers of some bits.

    Attributes:
        bits: from 1 to 16.
    """

    bits: int

    @property
    def low(self) -> int:
        """Return the least one."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Return the largest one."""
        return (1 << (self.bits - 1)) - 1

    def nearest(self, units: Tensor) -> Tensor:
        """Return the nearest integers, as floats; halves go to even ones."""
        return units.round().clamp_(self.low, self.high)


def fitting_bits(width: int, bits: int) -> int:
    """Return the most bits, up to 16, whose rows take no more bytes than those of `bits`.

    A row of one value takes a whole byte whatever its bits, so it may use all eight.
    """
    return min(_MAX_BITS, 8 * row_bytes(width, bits) // width)


def quantise(values: Tensor, step: Tensor, offset: Tensor | None, integers: IntegerRange) -> Tensor:
    """Return the nearest integers, as floats of the shape of `values`.

    Args:
        values: (N, D).
        step: positive, (N, 1) or of one element.
        offset: as `step`, or (D,); None for 0.
        integers: the range.
    """
    return integers.nearest((values if offset is None else values - offset) / step)


def dequantise(q: Tensor, step: Tensor, offset: Tensor | None) -> Tensor:
    """Return what integers stand for; training and serving both do exactly this."""
    values = q * step
    return values if offset is None else values + offset


@dataclass(frozen=True, kw_only=True)
class QuantisedForm:
    """How a table is stored, and how large it is.

    Attributes:
        num_rows: n.
        width: D.
        bits: b.
        num_steps: 1 or n.
        num_offsets: 0 or 1.
    """

    num_rows: int
    width: int
    bits: int
    num_steps: int = 1
    num_offsets: int = 0

    @property
    def row_bytes(self) -> int:
        """Return LB."""
        return row_bytes(self.width, self.bits)

    def parts(self) -> dict[str, int]:
        """Return the bytes of the integers, as "weights", and of "scales"."""
        return {
            "weights": self.num_rows * self.row_bytes,
            "scales": 4 * (self.num_steps + self.num_offsets),
        }

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(self.parts().values())


class QuantisedRows(StoredSource[QuantisedForm]):
    """One table of integers, steps and offsets; it serves and is not trained.

    Args:
        num_rows: see `QuantisedForm`, as all others.
        width: D.
        bits: b.
        num_steps: 1 or n.
        num_offsets: 0 or 1.
        device: where the tensors live.
    """

    form: ClassVar[str] = "quantised"
    codes: Tensor
    steps: Tensor
    offsets: Tensor | None

    def __init__(
        self,
        *,
        num_rows: int,
        width: int,
        bits: int,
        num_steps: int,
        num_offsets: int,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(
            QuantisedForm(
                num_rows=num_rows,
                width=width,
                bits=bits,
                num_steps=num_steps,
                num_offsets=num_offsets,
            )
        )
        self.integers = Integers(bits=bits)
        shape = (num_rows, self.stored.row_bytes)
        self.register_buffer("codes", torch.empty(shape, dtype=torch.uint8, device=device))
        self.register_buffer("steps", torch.empty(num_steps, device=device))
        offsets = torch.empty(num_offsets, device=device) if num_offsets else None
        self.register_buffer("offsets", offsets)

    @staticmethod
    @torch.no_grad()
    def of(
        rows: Callable[[int, int], Tensor],
        form: QuantisedForm,
        *,
        steps: Tensor,
        offsets: Tensor | None = None,
    ) -> "QuantisedRows":
        """Return a table in that form.

        Args:
            rows: returns the integers (last-first, D), of any type, of the rows [first, last).
            form: the form.
            steps: (num_steps,).
            offsets: (num_offsets,); None for none.
        """
        made = QuantisedRows(**asdict(form), device=steps.device)
        for first in range(0, form.num_rows, _CHUNK_ROWS):
            last = min(first + _CHUNK_ROWS, form.num_rows)
            codes = rows(first, last).int() - made.integers.low
            made.codes[first:last] = pack_codes(codes, form.bits)
        made.steps.copy_(steps)
        if made.offsets is not None and offsets is not None:
            made.offsets.copy_(offsets)
        return made.eval()

    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,)."""
        codes = unpack_codes(self.codes.index_select(0, ids), self.stored.width, self.stored.bits)
        steps = self.steps if self.stored.num_steps == 1 else self.steps[ids].unsqueeze(1)
        return dequantise((codes + self.integers.low).float(), steps, self.offsets)
