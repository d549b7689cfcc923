"""Two sparse tables whose rows are added: the serving form of pruned, composed tables.

    e(i) = P[i mod b] + Q[i // c]

Shapes: `N` ids, `D` the tables' width.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from recemb.methods.sparse_rows import SparseForm, SparseRows
from recemb.methods.stored_source import StoredSource
from recemb.tables.row_source import merge_bytes

SIDES = ("remainder", "quotient")


@dataclass(frozen=True, kw_only=True)
class PairForm:
    """The forms of both tables.

    Attributes:
        modulus: b.
        divisor: c.
        remainder: P's.
        quotient: Q's.
    """

    modulus: int
    divisor: int
    remainder: SparseForm
    quotient: SparseForm

    def side(self, name: str) -> SparseForm:
        """Return the form of "remainder" or "quotient"."""
        return self.remainder if name == "remainder" else self.quotient

    def parts(self) -> dict[str, int]:
        """Return the bytes of the values, as "weights", and of the indices."""
        return merge_bytes([self.side(name).parts() for name in SIDES])


class SparsePair(StoredSource[PairForm]):
    """One table as the sum of two in forms of `SparseRows`; it serves and is not trained.

    Args:
        modulus: b.
        divisor: c.
        remainder: the fields of P's `SparseForm`.
        quotient: those of Q's.
        device: where the tensors live.
    """

    form: ClassVar[str] = "sparse_pair"

    def __init__(
        self,
        *,
        modulus: int,
        divisor: int,
        remainder: Mapping[str, Any],
        quotient: Mapping[str, Any],
        device: torch.device | None = None,
    ) -> None:
        super().__init__(
            PairForm(
                modulus=modulus,
                divisor=divisor,
                remainder=SparseForm(**remainder),
                quotient=SparseForm(**quotient),
            )
        )
        for side in SIDES:
            for name, (count, dtype) in self.stored.side(side).tensors().items():
                tensor = torch.empty(count, dtype=dtype, device=device)
                self.register_buffer(f"{side}_{name}", tensor)

    @staticmethod
    def of(remainder: Tensor, quotient: Tensor, *, modulus: int, divisor: int) -> "SparsePair":
        """Return the smallest forms of P (b, D) and Q (m, D)."""
        sides = {"remainder": SparseRows.of(remainder), "quotient": SparseRows.of(quotient)}
        made = SparsePair(
            modulus=modulus,
            divisor=divisor,
            remainder=sides["remainder"].settings(),
            quotient=sides["quotient"].settings(),
            device=remainder.device,
        )
        tensors = {f"{s}_{name}": its for s in SIDES for name, its in sides[s].parts()}
        return made.filled(**tensors)

    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,)."""
        rows: Tensor = self._side("remainder")(table, torch.remainder(ids, self.stored.modulus))
        quotient = torch.div(ids, self.stored.divisor, rounding_mode="floor")
        more: Tensor = self._side("quotient")(table, quotient)
        return rows + more

    def _side(self, side: str) -> SparseRows:
        """Return P or Q, on these tensors."""
        form = self.stored.side(side)
        source = SparseRows(**asdict(form), device=torch.device("meta"))
        for name in form.tensors():
            source.register_buffer(name, self.get_buffer(f"{side}_{name}"))
        return source
