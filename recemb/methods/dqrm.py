"""DQRM: tables trained for a few bits, with a symmetric scale for each table that is measured.

    e = q * step,   q = clip(round(w / step), -2^(b-1), 2^(b-1) - 1)
    step = max |w| / (2^(b-1) - 1)

The maximum is that of the whole table, taken anew every so many updates alone; rows are rounded as
they are looked up, and only those. Rounding and clipping pass gradients through.

Source: Zhou et al., "DQRM: Deep Quantized Recommendation Models", 2024, arXiv 2410.20046: 4 bits,
scales refreshed every 200 to 1000 updates. Its quantised gradients and network are no tables.
Departure: tables begin small and grow, so scales are also refreshed after updates 1, 2, 4, 8, ...
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.methods.fake_quantised import FakeQuantised, FakeQuantisedTables, pass_through
from recemb.methods.quantised import QuantisedMethod
from recemb.methods.quantised_rows import dequantise, quantise
from recemb.tables.layout import Group
from recemb.tables.method import Context, built_for
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.recipe import Recipe, Step, Updates
from recemb.tables.spec import TableSpec

_SMALLEST_STEP = 1e-8


class MeasuredSteps(FakeQuantised):
    """Rounds rows with steps that follow from the largest values of their tables.

    Attributes:
        measured: (T,) the step of each table.

    Args:
        group: the tables.
        bits: see `FakeQuantised`.
    """

    measured: Tensor

    def __init__(self, group: Group, bits: int) -> None:
        super().__init__(group, bits)
        self.register_buffer("measured", torch.ones(len(group.tables)))

    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the vectors (N, D), rounded."""
        steps = self.measured[tables].unsqueeze(1)
        rounded = dequantise(quantise(vectors.detach(), steps, None, self.integers), steps, None)
        return pass_through(vectors, rounded)

    def steps(self) -> Tensor:
        """Return the step of each table, (T,)."""
        return self.measured

    def begin(self, place: int, weight: Tensor) -> None:
        """Measure a table (n, D)."""
        self.measured[place] = (weight.abs().max() / self.integers.high).clamp(min=_SMALLEST_STEP)


class DQRM(QuantisedMethod):
    """Tables trained for b bits with measured scales, in one fit.

    Serving takes ceil(D b / 8) bytes for a row and 4 for a table. Rows of width 1 take their whole
    byte, with 8 bits. Training takes what float32 tables take, and a pass over all tables at every
    refresh.

    Args:
        bits: see `QuantisedMethod`.
        refresh_steps: updates between refreshes.
        init_std: see `QuantisedMethod`.

    Raises:
        ValueError: on a number out of its range.
    """

    why_unshared = "steps are measured over whole tables, which no process has, while it trains"

    def __init__(
        self, *, bits: int | None = 4, refresh_steps: int = 200, init_std: float | None = None
    ) -> None:
        super().__init__(bits=bits, init_std=init_std)
        if refresh_steps < 1:
            raise ValueError(f"DQRM: refresh_steps must be at least 1, got {refresh_steps}")
        self.refresh_steps = refresh_steps

    def tables(
        self,
        specs: Sequence[TableSpec],
        bits: int,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> FakeQuantisedTables:
        """Return untrained tables."""
        return FakeQuantisedTables(
            specs,
            bits=bits,
            transform=lambda group: MeasuredSteps(group, bits),
            optimizer=optimizer,
            initial=self.initial(specs),
            seed=seed,
            device=device,
        )

    def run(self, ctx: Context) -> FakeQuantisedTables:
        """Return trained tables."""
        tables = built_for(ctx, self.build)
        assert isinstance(tables, FakeQuantisedTables)
        ctx.fit(tables, stage="train", recipe=Recipe(step=self._step(tables)))
        return tables

    def is_due(self, step: int) -> bool:
        """Return whether scales are refreshed after `step` updates."""
        is_power = step & (step - 1) == 0
        return step % self.refresh_steps == 0 or (is_power and step < self.refresh_steps)

    def _step(self, tables: FakeQuantisedTables) -> Step:
        def step(updates: Updates, batches: Sequence[Batch]) -> float:
            loss = updates.update(batches)
            if self.is_due(updates.step + 1):
                tables.begin()
            return loss

        return step
