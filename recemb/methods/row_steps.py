"""A step for each row of integer tables, learned in a second pass over every batch.

Shapes: `N` rows that were read, `R` rows of a group's buffer, `D` its width, `U` distinct rows that
an update touched.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.methods.fake_quantised import fake_quantise, pass_through
from recemb.methods.quantised_rows import Integers
from recemb.tables.formula import Formula
from recemb.tables.layout import Group
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.rounding import round_to_integers
from recemb.tables.transform import RowTransform

_SMALLEST_STEP = 1e-8


@dataclass(frozen=True, kw_only=True)
class RowGrid:
    """How float32 rows become integers, each row with its own step; a `RowRounding`.

    Attributes:
        steps: (R,).
        integers: the range.
        seed: of the random bits, 32-bit, different at every update.
        kept: takes rows (U,) and values (U, D) before they are rounded; None to keep nothing.
    """

    steps: Tensor
    integers: Integers
    seed: int
    kept: list[tuple[Tensor, Tensor]] | None = None

    def widen(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return what integers (U, D), as float32, of `rows` (U,) stand for."""
        return values * self.steps[rows].unsqueeze(1)

    def apply(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return `values` (U, D), float32, of `rows` (U,), as int8."""
        if self.kept is not None:
            self.kept.append((rows, values))
        units = round_to_integers(values / self.steps[rows].unsqueeze(1), rows, self.seed)
        return units.clamp_(self.integers.low, self.integers.high).to(torch.int8)


@dataclass(frozen=True, kw_only=True)
class SecondPass:
    """What the second pass over a batch reads.

    Attributes:
        rows: (U,) int64, ascending.
        values: (U, D) float32, their new values, not rounded.
        steps: (U, 1), a leaf that requires grad.
        factors: (U, 1) what the gradient of `steps` is multiplied by.
    """

    rows: Tensor
    values: Tensor
    steps: Tensor
    factors: Tensor


class RowSteps(RowTransform):
    """Multiplies integers by the steps of their rows.

    Attributes:
        steps: (R,).
        exp_avg: (R,) Adam's first moment of the steps' gradients.
        exp_avg_sq: (R,) its second.
        count: int64, number of updates of the steps.

    Args:
        group: the tables, of int8.
        bits: of a value.
        step: of every row at first.
        optimizer: of the steps: Adam.
    """

    steps: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    count: Tensor

    def __init__(self, group: Group, *, bits: int, step: float, optimizer: TableOptimizer) -> None:
        super().__init__(group)
        self.integers = Integers(bits=bits)
        self.optimizer = optimizer
        self.register_buffer("steps", torch.full((group.num_rows,), step))
        self.register_buffer("exp_avg", torch.zeros(group.num_rows))
        self.register_buffer("exp_avg_sq", torch.zeros(group.num_rows))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self._kept: list[tuple[Tensor, Tensor]] | None = None
        self._seed = 0
        self._second: SecondPass | None = None

    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the vectors (N, D), times their steps; their gradient is the vectors' own."""
        at = rows.clamp(min=0).long()
        second = self._second
        if second is None:
            return pass_through(vectors, vectors.detach() * self.steps[at].unsqueeze(1))
        places = torch.searchsorted(second.rows, at)
        values = second.values[places]
        return fake_quantise(values, second.steps, None, places, self.integers, second.factors)

    def rounding(self, seed: int) -> RowGrid:
        """Return how rows are rounded; between `keep` and `finish` they are noted, too."""
        self._seed = seed
        return RowGrid(steps=self.steps, integers=self.integers, seed=seed, kept=self._kept)

    def keep(self) -> None:
        """Note from now on what the updates make of rows."""
        self._kept = []

    def begin_second(self, batch_size: int) -> SecondPass | None:
        """Read noted values in the passes that follow; return them, None if there are none.

        Args:
            batch_size: B.
        """
        kept, self._kept = self._kept, None
        if not kept:
            return None
        rows, values = torch.cat([r for r, _ in kept]), torch.cat([v for _, v in kept])
        if len(kept) > 1:
            # Of a row that was updated twice the last values count.
            rows, order = torch.sort(rows, stable=True)
            is_last = torch.cat([rows[1:] != rows[:-1], rows.new_ones(1, dtype=torch.bool)])
            rows, values = rows[is_last], values[order[is_last]]
        factor = (batch_size * self.group.width * self.integers.high) ** -0.5
        steps = self.steps[rows].unsqueeze(1)
        self._second = SecondPass(
            rows=rows,
            values=values,
            steps=steps.requires_grad_(),
            factors=torch.full_like(steps, factor, requires_grad=False),
        )
        return self._second

    @torch.no_grad()
    def finish(self, second: SecondPass, grad: Tensor) -> Tensor:
        """Move the steps by their gradient (U, 1); return the integers (U, D) of the values."""
        self._second = None
        rows, steps = second.rows, second.steps.detach()
        self.count += 1
        state = {
            "exp_avg": self.exp_avg[rows].unsqueeze(1),
            "exp_avg_sq": self.exp_avg_sq[rows].unsqueeze(1),
        }
        formula = Formula(
            optimizer=self.optimizer,
            learning_rate=self.optimizer.learning_rate,
            step=int(self.count),
        )
        formula.apply(steps, grad, state)
        self.steps[rows] = steps.clamp_(min=_SMALLEST_STEP).view(-1)
        self.exp_avg[rows] = state["exp_avg"].view(-1)
        self.exp_avg_sq[rows] = state["exp_avg_sq"].view(-1)
        return self.rounding(self._seed).apply(second.values, rows)
