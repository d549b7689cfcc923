"""From float32 to the type of a table, without bias: stochastic rounding.

Rounding to nearest loses every update that is smaller than half a unit in the last place, which in
half precision is most of them. Rounding up with the probability that makes the expected value exact
loses none on average. The random bits are a function of seed and element alone, so they are the
same on every backend and do not depend on the order of rows.

Shapes: `U` rows, `D` their width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.kernels.bag_update.reference import round_stochastically
from recemb.kernels.compiled import compile_for_cpu

COMPILE_FROM = 1 << 18
"""Values from which a block is rounded by compiled code: below, it takes some milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How float32 values become those of a table.

    Attributes:
        dtype: the table's.
        seed: of the random bits, 32-bit, different at every step.
    """

    dtype: torch.dtype
    seed: int

    def apply(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return `values` (U, D) in the table's type.

        Args:
            values: float32.
            rows: (U,) which rows of the buffer they are.
        """
        seed = torch.tensor(self.seed, device=values.device)
        function = _round_to_half if self.dtype == torch.float16 else _round_to_bfloat16
        if values.is_cpu and values.numel() >= COMPILE_FROM:
            function = compile_for_cpu(function)
        return function(values, rows, seed)


def _round_to_half(values: Tensor, rows: Tensor, seed: Tensor) -> Tensor:
    return _round(values, rows, seed, torch.float16)


def _round_to_bfloat16(values: Tensor, rows: Tensor, seed: Tensor) -> Tensor:
    return _round(values, rows, seed, torch.bfloat16)


def _round(values: Tensor, rows: Tensor, seed: Tensor, dtype: torch.dtype) -> Tensor:
    columns = torch.arange(values.shape[1], device=rows.device)
    elements = rows.long().unsqueeze(1) * values.shape[1] + columns
    return round_stochastically(values, elements, seed, dtype)
