"""The serving form of tables many of whose values are zero: exact bytes, decoded on the fly.

A table keeps all its rows, or those alone that have a value, which a bitmap or a sorted list names;
and of those rows all values, the values with their columns (CSR), or the values with a bitmap. Of
these nine forms a table takes the smallest:

    which rows    bytes                          which values   bytes, of m rows that are kept
    all           0                              dense          4 m D
    bitmap        n / 8 + 4 per 1024 rows        csr            5 z + 4 (m + 1)
    list          4 r                            bitmap         4 z + m D / 8 + 4 per 1024 bits

Columns take two bytes above D = 256, and four above 2^15; counts eight bytes from 2^31 on; a row's
bitmap is padded to whole bytes. A bitmap has, for each block of 128 bytes, the number of ones
before it, so that a lookup counts the ones of one block.

Shapes: `n` rows of a table, `D` its width, `r` rows that have a value, `z` values, `N` ids.

Source: formats of the pruning methods' spec (Hetu's CSR and COO with wider columns); rank over
blocks is Jacobson's, "Space-efficient static trees and graphs", FOCS 1989.
"""

import itertools
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from recemb.methods.stored_source import StoredSource

RowIndex = Literal["all", "bitmap", "list"]
ValueIndex = Literal["dense", "csr", "bitmap"]

_BLOCK_BYTES = 128
_LARGEST_INT32 = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class SparseForm:
    """How a table is stored, and how large it is.

    Attributes:
        num_rows: n.
        width: D.
        num_kept: rows that are stored: n where `rows` is "all", else r.
        num_values: values that are stored: n D or r D where `values` is "dense", else z.
        rows: how the rows that are stored are known.
        values: how their values are known.
    """

    num_rows: int
    width: int
    num_kept: int
    num_values: int
    rows: RowIndex
    values: ValueIndex

    def tensors(self) -> dict[str, tuple[int, torch.dtype]]:
        """Return the number of elements and the type of each tensor."""
        counts = torch.int32 if self.num_values <= _LARGEST_INT32 else torch.int64
        ids = torch.int32 if self.num_rows <= _LARGEST_INT32 else torch.int64
        found: dict[str, tuple[int, torch.dtype]] = {"values": (self.num_values, torch.float32)}
        if self.rows == "bitmap":
            size = -(-self.num_rows // 8)
            found["row_bits"] = (size, torch.uint8)
            found["row_ranks"] = (num_ranks(size), ids)
        elif self.rows == "list":
            found["row_ids"] = (self.num_kept, ids)
        if self.values == "csr":
            found["columns"] = (self.num_values, _column_dtype(self.width))
            found["row_starts"] = (self.num_kept + 1, counts)
        elif self.values == "bitmap":
            size = self.num_kept * -(-self.width // 8)
            found["value_bits"] = (size, torch.uint8)
            found["value_ranks"] = (num_ranks(size), counts)
        return found

    def parts(self) -> dict[str, int]:
        """Return the bytes of the values, as "weights", and of "indices", if there are any."""
        sizes = {name: count * dtype.itemsize for name, (count, dtype) in self.tensors().items()}
        parts = {"weights": sizes.pop("values")}
        if indices := sum(sizes.values()):
            parts["indices"] = indices
        return parts

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(self.parts().values())

    @property
    def is_plain(self) -> bool:
        """Return whether this is the table as it is."""
        return self.rows == "all" and self.values == "dense"


def smallest_form(*, num_rows: int, width: int, num_kept: int, num_values: int) -> SparseForm:
    """Return the form of the fewest bytes; of several, the simplest.

    Args:
        num_rows: n.
        width: D.
        num_kept: r, rows with a value that is not zero.
        num_values: z, values that are not zero.
    """
    forms = []
    for rows, values in itertools.product(get_args(RowIndex), get_args(ValueIndex)):
        stored = num_rows if rows == "all" else num_kept
        form = SparseForm(
            num_rows=num_rows,
            width=width,
            num_kept=stored,
            num_values=stored * width if values == "dense" else num_values,
            rows=rows,
            values=values,
        )
        forms.append(form)
    return min(forms, key=lambda form: form.num_bytes)


def form_of(weight: Tensor) -> SparseForm:
    """Return the smallest form of a table (n, D)."""
    is_value = weight != 0
    return smallest_form(
        num_rows=weight.shape[0],
        width=weight.shape[1],
        num_kept=int(is_value.any(dim=1).sum()),
        num_values=int(is_value.sum()),
    )


class SparseRows(StoredSource[SparseForm]):
    """One table in one of the forms of the module; it serves and is not trained.

    Args:
        num_rows: see `SparseForm`, as all others.
        width: D.
        num_kept: rows that are stored.
        num_values: values that are stored.
        rows: how rows are known.
        values: how values are known.
        device: where the tensors live.
    """

    form: ClassVar[str] = "sparse"

    def __init__(
        self,
        *,
        num_rows: int,
        width: int,
        num_kept: int,
        num_values: int,
        rows: RowIndex,
        values: ValueIndex,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(
            SparseForm(
                num_rows=num_rows,
                width=width,
                num_kept=num_kept,
                num_values=num_values,
                rows=rows,
                values=values,
            )
        )
        for name, (count, dtype) in self.stored.tensors().items():
            self.register_buffer(name, torch.empty(count, dtype=dtype, device=device))

    @staticmethod
    def of(weight: Tensor) -> "SparseRows":
        """Return the smallest form of a table (n, D), on its device."""
        weight = weight.detach()
        made = SparseRows(**asdict(form_of(weight)), device=weight.device)
        is_kept = (weight != 0).any(dim=1)
        if made.stored.rows != "all":
            weight = weight[is_kept]
        is_value = weight != 0
        tensors = {"values": weight.flatten()}
        if made.stored.values != "dense":
            tensors["values"] = weight[is_value]
        if made.stored.rows == "bitmap":
            tensors["row_bits"] = pack_bits(is_kept.unsqueeze(0))
            tensors["row_ranks"] = block_ranks(tensors["row_bits"])
        elif made.stored.rows == "list":
            tensors["row_ids"] = is_kept.nonzero().view(-1)
        if made.stored.values == "csr":
            tensors["columns"] = is_value.nonzero()[:, 1]
            tensors["row_starts"] = _starts(is_value.sum(dim=1))
        elif made.stored.values == "bitmap":
            tensors["value_bits"] = pack_bits(is_value)
            tensors["value_ranks"] = block_ranks(tensors["value_bits"])
        return made.filled(**tensors)

    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,)."""
        vectors = torch.zeros(ids.numel(), self.stored.width, device=ids.device)
        places, at = self._stored_rows(ids)
        if self.stored.num_values and at.numel():
            vectors[places] = self._decoded(at)
        return vectors

    def _stored_rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of the ids have a row that is stored, and which row that is."""
        if self.stored.rows == "all":
            return torch.arange(ids.numel(), device=ids.device), ids
        if self.stored.rows == "list":
            row_ids = self.get_buffer("row_ids")
            at = torch.searchsorted(row_ids, ids.to(row_ids.dtype))
            found = row_ids[at.clamp(max=max(0, row_ids.numel() - 1))] if row_ids.numel() else None
            places = (ids == found).nonzero().view(-1) if found is not None else at[:0]
            return places, at[places]
        bits = self.get_buffer("row_bits")
        which = bits[ids // 8].int()
        bit = (ids % 8).int()
        places = ((which >> bit) & 1).nonzero().view(-1)
        return places, ones_before(bits, self.get_buffer("row_ranks"), ids[places])

    def _decoded(self, at: Tensor) -> Tensor:
        """Return the rows (N, D) whose places (N,) among those stored are `at`."""
        values = self.get_buffer("values")
        width = self.stored.width
        if self.stored.values == "dense":
            return values.view(-1, width).index_select(0, at)
        if self.stored.values == "bitmap":
            size = -(-width // 8)
            bits = self.get_buffer("value_bits")
            first = _ones_before(bits, self.get_buffer("value_ranks"), at * size)
            is_value = unpack_bits(bits.view(-1, size)[at], width)
            places = first.unsqueeze(1) + is_value.cumsum(dim=1) - 1
            return torch.where(is_value, values[places.clamp(min=0)], 0)
        starts = self.get_buffer("row_starts").long()
        lengths = starts[at + 1] - starts[at]
        rows = torch.arange(at.numel(), device=at.device).repeat_interleave(lengths)
        within = torch.arange(rows.numel(), device=at.device) - _starts(lengths)[rows]
        places = starts[at][rows] + within
        vectors = torch.zeros(at.numel(), width, device=at.device)
        vectors[rows, self.get_buffer("columns")[places].long()] = values[places]
        return vectors


def _column_dtype(width: int) -> torch.dtype:
    if width <= 2**8:
        return torch.uint8
    return torch.int16 if width <= 2**15 else torch.int32


def _starts(lengths: Tensor) -> Tensor:
    """Return where each of consecutive runs starts, and where the last ends, int64."""
    starts = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=starts[1:])
    return starts


def pack_bits(flags: Tensor) -> Tensor:
    """Return the bits of flags (m, D), each row padded to whole bytes, the lowest bit first."""
    padded = torch.nn.functional.pad(flags.to(torch.uint8), (0, -flags.shape[1] % 8))
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=flags.device)
    return (padded.view(-1, 8) * weights).sum(dim=1, dtype=torch.uint8)


def unpack_bits(rows: Tensor, width: int) -> Tensor:
    """Return the flags (m, D) of rows of bytes."""
    shifts = torch.arange(8, dtype=torch.uint8, device=rows.device)
    return ((rows.unsqueeze(2) >> shifts) & 1).flatten(1)[:, :width].bool()


def _ones(bits: Tensor) -> Tensor:
    """Return the number of ones of each byte, uint8."""
    pairs = bits - ((bits >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return (nibbles + (nibbles >> 4)) & 0x0F


def num_ranks(num_bytes: int) -> int:
    """Return how many blocks some bytes of bits have."""
    return -(-num_bytes // _BLOCK_BYTES)


def block_ranks(bits: Tensor) -> Tensor:
    """Return the ones before each block of bytes, int64."""
    ones = torch.nn.functional.pad(_ones(bits), (0, -bits.numel() % _BLOCK_BYTES))
    return _starts(ones.view(-1, _BLOCK_BYTES).sum(dim=1))[:-1]


def ones_before(bits: Tensor, ranks: Tensor, at: Tensor) -> Tensor:
    """Return the ones before each of the bits `at` (N,), int64.

    Args:
        bits: as `pack_bits` makes them of one row.
        ranks: as `block_ranks` makes them.
        at: (N,) int64, numbers of bits.
    """
    before = bits[at // 8].int() & ((1 << (at % 8).int()) - 1)
    return _ones_before(bits, ranks, at // 8) + _ones(before.to(torch.uint8)).long()


def _ones_before(bits: Tensor, ranks: Tensor, at: Tensor) -> Tensor:
    """Return the ones before each of the bytes `at` (N,), int64."""
    block = at // _BLOCK_BYTES
    around = block.unsqueeze(1) * _BLOCK_BYTES + torch.arange(_BLOCK_BYTES, device=at.device)
    counts = _ones(bits[around.clamp(max=max(0, bits.numel() - 1))])
    here = torch.where(around < at.unsqueeze(1), counts, 0).sum(dim=1)
    return ranks[block].long() + here
