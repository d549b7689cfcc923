"""From float32 to the type of a table, without bias: stochastic rounding.

Rounding to nearest loses every update that is smaller than half a unit in the last place, which in
half precision is most of them. Rounding up with the probability that makes the expected value exact
loses none on average. The random bits are a function of seed and element alone, so they are the
same on every backend and do not depend on the order of rows.

Shapes: `U` rows, `D` their width.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recemb.kernels.bag_update.reference import random_bits, round_stochastically
from recemb.kernels.compiled import compile_for_cpu

COMPILE_FROM = 1 << 18
"""Values from which a block is rounded by compiled code: below, it takes some milliseconds."""


class RowRounding(Protocol):
    """How float32 values become those of a table, and back."""

    @property
    def seed(self) -> int:
        """Return the seed of the random bits."""
        ...

    def widen(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return what the table's values (U, D), as float32, of `rows` (U,) stand for."""
        ...

    def apply(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return `values` (U, D), float32, in the table's type; `rows` (U,) are theirs."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How float32 values become those of a table.

    Attributes:
        dtype: the table's.
        seed: of the random bits, 32-bit, different at every step.
    """

    dtype: torch.dtype
    seed: int

    def widen(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return what the table's values (U, D), as float32, stand for: themselves."""
        return values

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


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How float32 values become multiples of a step, held as integers.

        q = clip(floor(value / step + u)),   u uniform in [0, 1)

    so that the expected value is the value, unless that is beyond the integers' range.

    Attributes:
        dtype: the table's, torch.int8 or torch.int16.
        step: what an integer is multiplied by.
        seed: of the random bits, 32-bit, different at every step.

    Source: stochastic rounding of low-precision tables as in Xu et al., "Agile and Accurate CTR
    Prediction Model Training for Massive-Scale Online Advertising Systems", SIGMOD 2021.
    """

    dtype: torch.dtype
    step: float
    seed: int

    def widen(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return what the table's integers (U, D), as float32, stand for."""
        return values * self.step

    def apply(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return `values` (U, D), float32, as integers of the table's type.

        Args:
            values: float32.
            rows: (U,) which rows of the buffer they are.
        """
        limits = torch.iinfo(self.dtype)
        units = round_to_integers(values / self.step, rows, self.seed)
        return units.clamp_(limits.min, limits.max).to(self.dtype)


def round_to_integers(values: Tensor, rows: Tensor, seed: int) -> Tensor:
    """Return floor(value + u) as floats, u uniform in [0, 1): the value itself on average.

    Args:
        values: (U, D) float32.
        rows: (U,) which rows of the buffer they are.
        seed: of the random bits, 32-bit, different at every step.
    """
    columns = torch.arange(values.shape[1], device=rows.device)
    elements = rows.long().unsqueeze(1) * values.shape[1] + columns
    bits = random_bits(torch.tensor(seed, device=values.device), elements)
    chance = (bits & _CHANCE_MASK).float() / (_CHANCE_MASK + 1)
    return torch.floor(values + chance)


_CHANCE_MASK = (1 << 24) - 1
"""Random bits of which a chance is made: as many as a float32 can tell apart."""


def _round_to_half(values: Tensor, rows: Tensor, seed: Tensor) -> Tensor:
    return _round(values, rows, seed, torch.float16)


def _round_to_bfloat16(values: Tensor, rows: Tensor, seed: Tensor) -> Tensor:
    return _round(values, rows, seed, torch.bfloat16)


def _round(values: Tensor, rows: Tensor, seed: Tensor, dtype: torch.dtype) -> Tensor:
    columns = torch.arange(values.shape[1], device=rows.device)
    elements = rows.long().unsqueeze(1) * values.shape[1] + columns
    return round_stochastically(values, elements, seed, dtype)
