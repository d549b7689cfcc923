"""Two sparse tables whose rows are added: the serving form of pruned, composed tables.

    e(i) = P[i mod b] + Q[i // c]

Shapes: `N` ids, `D` the tables' width.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from recemb.methods.sparse_rows import SparseForm, SparseRows
from recemb.tables.row_source import RowSource, merge_bytes


class SparsePair(RowSource):
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
        super().__init__()
        self.modulus = modulus
        self.divisor = divisor
        self.stored = {
            "remainder": SparseForm(**remainder),
            "quotient": SparseForm(**quotient),
        }
        for side, stored in self.stored.items():
            for name, (count, dtype) in stored.tensors().items():
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
        for side, source in sides.items():
            for name, tensor in source.parts():
                made.get_buffer(f"{side}_{name}").copy_(tensor)
        return made.eval()

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments but `device`."""
        forms = {side: asdict(stored) for side, stored in self.stored.items()}
        return {"modulus": self.modulus, "divisor": self.divisor, **forms}

    def initialise(self, generator: torch.Generator) -> None:
        """Draw nothing: the form is made of tables that were trained."""

    def train_bytes(self) -> dict[str, int]:
        """Return the bytes of the values, as "weights", and of the indices."""
        return merge_bytes([stored.parts() for stored in self.stored.values()])

    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,)."""
        rows: Tensor = self._side("remainder")(table, torch.remainder(ids, self.modulus))
        quotient = torch.div(ids, self.divisor, rounding_mode="floor")
        more: Tensor = self._side("quotient")(table, quotient)
        return rows + more

    def _side(self, side: str) -> SparseRows:
        """Return P or Q, on these tensors."""
        source = SparseRows(**asdict(self.stored[side]), device=torch.device("meta"))
        for name in self.stored[side].tensors():
            source.register_buffer(name, self.get_buffer(f"{side}_{name}"))
        return source
