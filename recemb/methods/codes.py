"""The serving form of quantised vectors: bit-packed codes into codebooks, side by side.

    row(i) = [C_1[k_1(i)], .., C_P[k_P(i)]]

A row of codes is packed as `recemb.kernels.code_bag` reads it. Where rare ids use the first
centroids only, their codes have fewer bits and lie in a table of their own; a bitmap, with counts
for each 1024 ids, says which table an id is in. If that is no smaller, all codes have equally many.

Shapes: `n` rows, `D` width, `P` parts, `K` centroids of a part, `Z` = D / P, `N` ids.
"""

import math
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recemb.kernels.code_bag import pack_codes, row_bytes, unpack_codes
from recemb.methods.sparse_rows import block_ranks, num_ranks, ones_before, pack_bits
from recemb.methods.stored_source import StoredSource


@dataclass(frozen=True, kw_only=True)
class CodeForm:
    """How a table is stored as codes, and how large that is.

    Attributes:
        num_rows: n.
        width: D.
        num_parts: P, which divides D.
        num_centroids: K, from 2 to 2^16.
        num_head: rows that may use all centroids; None for all rows.
        tail_centroids: how many the others may use, the first ones; None without others.
    """

    num_rows: int
    width: int
    num_parts: int
    num_centroids: int
    num_head: int | None = None
    tail_centroids: int | None = None

    @property
    def bits(self) -> int:
        """Return the bits of a code."""
        return bits_of(self.num_centroids)

    @property
    def tail_bits(self) -> int:
        """Return the bits of a code of the rows that may not use all centroids."""
        return self.bits if self.tail_centroids is None else bits_of(self.tail_centroids)

    @property
    def is_split(self) -> bool:
        """Return whether the rows lie in two tables, because that is smaller."""
        if self.num_head is None:
            return False
        return _sum_bytes(self._codes(is_split=True)) < _sum_bytes(self._codes(is_split=False))

    def tensors(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return the shape and the type of each tensor."""
        found = self._codes(is_split=self.is_split)
        shape = (self.num_parts, self.num_centroids, self.width // self.num_parts)
        return {**found, "codebooks": (shape, torch.float32)}

    def parts(self) -> dict[str, int]:
        """Return the bytes of "codes" and "codebooks", and of "indices", if there are any."""
        found: dict[str, int] = {}
        for name, entry in self.tensors().items():
            part = _PART_OF[name]
            found[part] = found.get(part, 0) + _sum_bytes({name: entry})
        return found

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(self.parts().values())

    def _codes(self, *, is_split: bool) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        if not is_split:
            shape = (self.num_rows, row_bytes(self.num_parts, self.bits))
            return {"codes": (shape, torch.uint8)}
        assert self.num_head is not None
        head = (self.num_head, row_bytes(self.num_parts, self.bits))
        tail = (self.num_rows - self.num_head, row_bytes(self.num_parts, self.tail_bits))
        size = -(-self.num_rows // 8)
        ranks = torch.int32 if self.num_rows < 2**31 else torch.int64
        return {
            "head_codes": (head, torch.uint8),
            "tail_codes": (tail, torch.uint8),
            "head_bits": ((size,), torch.uint8),
            "head_ranks": ((num_ranks(size),), ranks),
        }


class CodeRows(StoredSource[CodeForm]):
    """One table of codes; it serves and is not trained.

    Args:
        num_rows: see `CodeForm`, as all others.
        width: D.
        num_parts: P.
        num_centroids: K.
        num_head: rows that may use all centroids.
        tail_centroids: what the others may use.
        device: where the tensors live.
    """

    form: ClassVar[str] = "codes"
    packable: ClassVar[str | None] = "codebooks"

    def __init__(
        self,
        *,
        num_rows: int,
        width: int,
        num_parts: int,
        num_centroids: int,
        num_head: int | None = None,
        tail_centroids: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(
            CodeForm(
                num_rows=num_rows,
                width=width,
                num_parts=num_parts,
                num_centroids=num_centroids,
                num_head=num_head,
                tail_centroids=tail_centroids,
            )
        )
        for name, (shape, dtype) in self.stored.tensors().items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device=device))

    @staticmethod
    def of(
        stored: CodeForm, codes: Tensor, codebooks: Tensor, is_head: Tensor | None = None
    ) -> "CodeRows":
        """Return a table of codes, on the codebooks' device.

        Args:
            stored: its form.
            codes: (n, P) integer.
            codebooks: (P, K, Z).
            is_head: (n,) bool, which rows may use all centroids; None for all.
        """
        made = CodeRows(**asdict(stored), device=codebooks.device)
        tensors = {"codebooks": codebooks.detach()}
        if stored.is_split:
            assert is_head is not None
            tensors["head_codes"] = pack_codes(codes[is_head], stored.bits)
            tensors["tail_codes"] = pack_codes(codes[~is_head], stored.tail_bits)
            tensors["head_bits"] = pack_bits(is_head.unsqueeze(0))
            tensors["head_ranks"] = block_ranks(tensors["head_bits"])
        else:
            tensors["codes"] = pack_codes(codes, stored.bits)
        return made.filled(**tensors)

    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,)."""
        return read_codebooks(self.get_buffer("codebooks"), self.codes_of(ids))

    def codes_of(self, ids: Tensor) -> Tensor:
        """Return the codes (N, P) int32 of `ids` (N,)."""
        stored = self.stored
        if not stored.is_split:
            return unpack_codes(self.get_buffer("codes")[ids], stored.num_parts, stored.bits)
        bits = self.get_buffer("head_bits")
        is_head = ((bits[ids // 8].int() >> (ids % 8).int()) & 1).bool()
        rank = ones_before(bits, self.get_buffer("head_ranks"), ids)
        found = torch.empty(ids.numel(), stored.num_parts, dtype=torch.int32, device=ids.device)
        for name, chosen, at, width in (
            ("head_codes", is_head, rank, stored.bits),
            ("tail_codes", ~is_head, ids - rank, stored.tail_bits),
        ):
            packed = self.get_buffer(name)[at[chosen]]
            found[chosen] = unpack_codes(packed, stored.num_parts, width)
        return found


def read_codebooks(codebooks: Tensor, codes: Tensor) -> Tensor:
    """Return the vectors (N, P Z) that codes (N, P) mean in codebooks (P, K, Z)."""
    parts = torch.arange(codebooks.shape[0], device=codes.device)
    return codebooks[parts, codes.long()].flatten(1)


def bits_of(num_codes: int) -> int:
    """Return the bits of a code that has so many values: ceil(log2), at least 1."""
    return max(1, (num_codes - 1).bit_length())


_PART_OF = {
    "codes": "codes",
    "head_codes": "codes",
    "tail_codes": "codes",
    "head_bits": "indices",
    "head_ranks": "indices",
    "codebooks": "codebooks",
}


def _sum_bytes(tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensors.values())
