"""The serving form of tables whose rows have different bits: rows of bytes, one after the other.

    row(i) = q_i * step_b + offset   for the bits b of row i,   0 where b is 0

Of each row a nibble says which of at most 16 numbers of bits it has; of each block of 64 rows an
integer says at which byte its first row begins. A row of b bits takes ceil(D b / 8) bytes, so a
lookup adds up the bytes of the rows before it in its block.

    bytes = n / 2 + 4 n / 64 + sum over rows of ceil(D b / 8) + 4 for each step and offset

(8 for a start where the rows take 2^31 bytes or more.)

Shapes: `n` rows of all tables, `D` their width, `C` numbers of bits, `N` ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from recemb.kernels.code_bag import pack_codes, row_bytes, unpack_codes
from recemb.methods.quantised_rows import Integers, dequantise
from recemb.methods.stored_source import StoredSource

_BLOCK_ROWS = 64
_LARGEST_INT32 = 2**31 - 1
_MAX_CLASSES = 16
_CHUNK_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class MixedForm:
    """How tables of one width are stored, and how large they are.

    Attributes:
        num_rows: of each table, by name, in the order of their rows.
        width: D.
        bits: the numbers of bits that a row can have, C of them.
        counts: how many rows have each.

    Raises:
        ValueError: if there are more than 16 numbers of bits.
    """

    num_rows: Mapping[str, int]
    width: int
    bits: tuple[int, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.bits) <= _MAX_CLASSES or len(self.counts) != len(self.bits):
            raise ValueError(
                f"MixedForm: a nibble tells 1 to {_MAX_CLASSES} numbers of bits apart, got "
                f"{list(self.bits)} for {len(self.counts)} counts"
            )

    @property
    def total_rows(self) -> int:
        """Return n."""
        return sum(self.num_rows.values())

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Return the bytes of a row of each number of bits, (C,)."""
        return tuple(row_bytes(self.width, bits) for bits in self.bits)

    @property
    def code_bytes(self) -> int:
        """Return the bytes of all rows."""
        return sum(size * num for size, num in zip(self.row_bytes, self.counts, strict=True))

    def tensors(self) -> dict[str, tuple[int, torch.dtype]]:
        """Return the number of elements and the type of each tensor."""
        starts = torch.int32 if self.code_bytes <= _LARGEST_INT32 else torch.int64
        return {
            "codes": (self.code_bytes, torch.uint8),
            "classes": (-(-self.total_rows // 2), torch.uint8),
            "starts": (-(-self.total_rows // _BLOCK_ROWS), starts),
            "steps": (len(self.bits), torch.float32),
            "offsets": (self.width, torch.float32),
        }

    def parts(self) -> dict[str, int]:
        """Return the bytes of the integers, as "weights", of "indices" and of "scales"."""
        sizes = {name: count * dtype.itemsize for name, (count, dtype) in self.tensors().items()}
        return {
            "weights": sizes["codes"],
            "indices": sizes["classes"] + sizes["starts"],
            "scales": sizes["steps"] + sizes["offsets"],
        }

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(self.parts().values())


class MixedRows(StoredSource[MixedForm]):
    """Tables of one width whose rows have different bits; it serves and is not trained.

    Args:
        num_rows: see `MixedForm`, as all others.
        width: D.
        bits: the numbers of bits.
        counts: how many rows have each.
        device: where the tensors live.
    """

    form: ClassVar[str] = "mixed_bits"
    codes: Tensor
    classes: Tensor
    starts: Tensor
    steps: Tensor
    offsets: Tensor

    def __init__(
        self,
        *,
        num_rows: Mapping[str, int],
        width: int,
        bits: Sequence[int],
        counts: Sequence[int],
        device: torch.device | None = None,
    ) -> None:
        super().__init__(
            MixedForm(num_rows=dict(num_rows), width=width, bits=tuple(bits), counts=tuple(counts))
        )
        for name, (count, dtype) in self.stored.tensors().items():
            self.register_buffer(name, torch.empty(count, dtype=dtype, device=device))
        self._first_rows, first = {}, 0
        for name, num in num_rows.items():
            self._first_rows[name] = first
            first += num

    @staticmethod
    @torch.no_grad()
    def of(
        integers: Tensor, classes: Tensor, form: MixedForm, *, steps: Tensor, offsets: Tensor
    ) -> "MixedRows":
        """Return tables in that form.

        Args:
            integers: (n, D), of any type, those of all tables in turn.
            classes: (n,) uint8, which of `form.bits` a row has.
            form: the form.
            steps: (C,).
            offsets: (D,).
        """
        settings = _settings(form)
        made = MixedRows(**settings, device=integers.device)
        sizes = made._sizes()[classes.long()]
        begins = sizes.cumsum(0) - sizes
        for place, bits in enumerate(form.bits):
            rows = (classes == place).nonzero().view(-1)
            if not bits:
                continue
            for its in torch.split(rows, _CHUNK_ROWS):
                codes = integers[its].int() - Integers(bits=bits).low
                at = begins[its].unsqueeze(1) + torch.arange(
                    form.row_bytes[place], device=its.device
                )
                made.codes[at] = pack_codes(codes, bits)
        made.starts.copy_(begins[::_BLOCK_ROWS])
        nibbles = torch.nn.functional.pad(classes, (0, -classes.numel() % 2)).view(-1, 2)
        made.classes.copy_(nibbles[:, 0] | (nibbles[:, 1] << 4))
        made.steps.copy_(steps)
        made.offsets.copy_(offsets)
        return made.eval()

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments but `device`."""
        return _settings(self.stored)

    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,)."""
        begins, classes = self._located(ids + self._first_rows[table])
        vectors = torch.zeros(ids.numel(), self.stored.width, device=ids.device)
        for place, bits in enumerate(self.stored.bits):
            its = (classes == place).nonzero().view(-1)
            if not bits or not its.numel():
                continue
            size = self.stored.row_bytes[place]
            at = begins[its].unsqueeze(1) + torch.arange(size, device=ids.device)
            codes = unpack_codes(self.codes[at], self.stored.width, bits)
            q = (codes + Integers(bits=bits).low).float()
            vectors[its] = dequantise(q, self.steps[place], self.offsets)
        return vectors

    def _located(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first byte (N,) int64 and the class (N,) of rows (N,)."""
        block, within = rows // _BLOCK_ROWS, rows % _BLOCK_ROWS
        around = torch.arange(_BLOCK_ROWS // 2, device=rows.device)
        at = block.unsqueeze(1) * (_BLOCK_ROWS // 2) + around
        pairs = self.classes[at.clamp(max=self.classes.numel() - 1)]
        classes = torch.stack([pairs & 15, pairs >> 4], dim=2).flatten(1)
        is_before = torch.arange(_BLOCK_ROWS, device=rows.device) < within.unsqueeze(1)
        sizes = self._sizes()[classes.int()]
        before = (sizes * is_before).sum(dim=1)
        own = classes.gather(1, within.unsqueeze(1)).view(-1)
        return self.starts[block].long() + before, own

    def _sizes(self) -> Tensor:
        """Return the bytes of a row of each class, (16,); 0 for classes that there are not."""
        sizes = list(self.stored.row_bytes)
        padded = sizes + [0] * (_MAX_CLASSES - len(sizes))
        return torch.tensor(padded, device=self.codes.device)


def _settings(form: MixedForm) -> dict[str, Any]:
    return {
        "num_rows": dict(form.num_rows),
        "width": form.width,
        "bits": list(form.bits),
        "counts": list(form.counts),
    }
