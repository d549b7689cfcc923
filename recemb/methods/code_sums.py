"""The serving form of CCE: each chunk of a row is a centroid, named by a code, plus a hashed row.

    row(i) = [C_1[k_1(i)] + H_1[h_1(i)], .., C_c[k_c(i)] + H_c[h_c(i)]]

Shapes: `N` ids, `n` rows, `D` their width, `c` chunks of them, `Z` = D / c; `r` centroids of a
chunk, and as many hashed rows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recemb.kernels.code_bag import pack_codes, row_bytes, unpack_codes
from recemb.kernels.hashing import reference
from recemb.methods.codes import bits_of
from recemb.methods.stored_source import StoredSource
from recemb.tables.bags import Bags
from recemb.tables.lookup_plan import Output
from recemb.tables.row_source import pool


@dataclass(frozen=True, kw_only=True)
class SumForm:
    """How a table is stored, and how large that is.

    Attributes:
        num_rows: n.
        width: D.
        num_chunks: c, which divides D.
        num_entries: r.
    """

    num_rows: int
    width: int
    num_chunks: int
    num_entries: int

    @property
    def bits(self) -> int:
        """Return the bits of a code."""
        return bits_of(self.num_entries)

    @property
    def chunk_width(self) -> int:
        """Return Z."""
        return self.width // self.num_chunks

    def parts(self) -> dict[str, int]:
        """Return the bytes of each part."""
        return {
            "codes": self.num_rows * row_bytes(self.num_chunks, self.bits),
            "weights": 2 * 4 * self.num_entries * self.width,
            "hash_constants": 8 * self.num_chunks,
        }

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all parts."""
        return sum(self.parts().values())


class CodeSums(StoredSource[SumForm]):
    """One table; it serves and is not trained.

    Args:
        num_rows: see `SumForm`, as all others.
        width: D.
        num_chunks: c.
        num_entries: r.
        device: where the tensors live.
    """

    form: ClassVar[str] = "code_sums"

    def __init__(
        self,
        *,
        num_rows: int,
        width: int,
        num_chunks: int,
        num_entries: int,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(
            SumForm(num_rows=num_rows, width=width, num_chunks=num_chunks, num_entries=num_entries)
        )
        size = row_bytes(num_chunks, self.stored.bits)
        codes = torch.empty(num_rows, size, dtype=torch.uint8, device=device)
        self.register_buffer("codes", codes)
        for name in ("centroids", "hashed"):
            rows = torch.empty(num_chunks * num_entries, width // num_chunks, device=device)
            self.register_buffer(name, rows)
        seeds = torch.empty(num_chunks, dtype=torch.int64, device=device)
        self.register_buffer("hash_seeds", seeds)

    @staticmethod
    def of(
        stored: SumForm,
        *,
        codes: Tensor,
        centroids: Tensor,
        hashed: Tensor,
        hash_seeds: Sequence[int],
    ) -> "CodeSums":
        """Return a table, on the device of its centroids.

        Args:
            stored: its form.
            codes: (n, c) integer.
            centroids: (c r, Z), chunk by chunk.
            hashed: (c r, Z), likewise.
            hash_seeds: of each chunk's hash function, 32-bit.
        """
        made = CodeSums(**asdict(stored), device=centroids.device)
        tensors = {
            "codes": pack_codes(codes, stored.bits),
            "centroids": centroids.detach(),
            "hashed": hashed.detach(),
            "hash_seeds": torch.tensor(hash_seeds),
        }
        return made.filled(**tensors)

    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,)."""
        centroids, hashed = self._halves(ids).chunk(2, dim=1)
        return centroids + hashed

    def pooled(self, outputs: Sequence[Output], bags: Bags) -> list[Tensor]:
        """Return the pooled vectors (B, D) of each output.

        The two terms are pooled and then added, as in training, so that the bits are the same.
        """
        found = []
        for feature, (output, ids) in enumerate(
            zip(outputs, torch.split(bags.values, bags.sizes), strict=True)
        ):
            distinct, places = torch.unique(ids.long(), return_inverse=True)
            both = pool(self._halves(distinct), places, bags, feature, output)
            centroids, hashed = both.chunk(2, dim=1)
            found.append(centroids + hashed)
        return found

    def _halves(self, ids: Tensor) -> Tensor:
        """Return the centroids and the hashed rows (N, 2 D) of `ids` (N,), side by side."""
        stored, seeds = self.stored, self.get_buffer("hash_seeds").tolist()
        packed = self.get_buffer("codes")[ids]
        codes = unpack_codes(packed, stored.num_chunks, stored.bits).long()
        hashes = [reference.hash_rows(ids, seed, stored.num_entries) for seed in seeds]
        first = torch.arange(stored.num_chunks, device=ids.device) * stored.num_entries
        centroids = self.get_buffer("centroids")[codes + first].flatten(1)
        hashed = self.get_buffer("hashed")[torch.stack(hashes, dim=1) + first].flatten(1)
        return torch.cat([centroids, hashed], dim=1)
