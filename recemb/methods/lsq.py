"""LSQ and LSQ+: tables trained for a few bits, with a step, and an offset, learned for each table.

    e = q * step + offset,   q = clip(round((w - offset) / step), -2^(b-1), 2^(b-1) - 1)

The float32 weights w stay while training lasts; rounding passes gradients through. The gradients of
step and offset are those of `FakeQuantise`, times 1 / sqrt(N D (2^(b-1) - 1)) for N rows read.

Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv 1902.08153; Bhalgat et al.,
"LSQ+: Improving low-bit quantization through learnable offsets and better initialization", CVPR
Workshops 2020, arXiv 2004.09576. As a baseline for embedding tables: Li et al., "Mixed-Precision
Embeddings", arXiv 2409.20305.

Departures. The papers begin with a trained float32 model, whose weights say how large a step must
be. Tables here begin small and random, and grow a hundredfold, so for the first updates a step is
not learned but measured, by LSQ+'s formula, from the rows that the last batch read. What is learned
is the logarithm of a step: it stays positive, and an optimizer's learning rate is relative to it,
whatever the size of the weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recemb.data.batch import Batch
from recemb.methods.fake_quantised import (
    FakeQuantised,
    FakeQuantisedTables,
    fake_quantise,
)
from recemb.methods.quantised import QuantisedMethod
from recemb.tables.layout import Group
from recemb.tables.method import Context, built_for
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.recipe import Recipe, Step, Updates
from recemb.tables.spec import TableSpec

_SMALLEST_STEP = 1e-8


class LearnedSteps(FakeQuantised):
    """Rounds rows with learned steps.

    Attributes:
        log_steps: (T,), natural logarithms.
        offset: (T,), or None.
        is_measuring: whether a pass in training mode takes the moments of the rows it reads.

    Args:
        group: the tables.
        bits: see `FakeQuantised`.
        has_offset: whether there is an offset.
    """

    offset: nn.Parameter | None

    def __init__(self, group: Group, bits: int, *, has_offset: bool) -> None:
        super().__init__(group, bits)
        num_tables = len(group.tables)
        self.log_steps = nn.Parameter(torch.zeros(num_tables))
        offset = nn.Parameter(torch.zeros(num_tables)) if has_offset else None
        self.register_parameter("offset", offset)
        self.is_measuring = False
        self._moments = torch.zeros(3, num_tables, dtype=torch.float64)

    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the vectors (N, D), rounded."""
        if self.is_measuring and self.training:
            self._moments = self._moments.to(vectors.device)
            self._moments += self._measured(vectors.detach(), tables)
        counts = torch.bincount(tables, minlength=len(self.group.tables))
        factors = (counts * (self.group.width * self.integers.high)).clamp(min=1).rsqrt()
        return fake_quantise(
            vectors,
            self.steps().unsqueeze(1),
            None if self.offset is None else self.offset.unsqueeze(1),
            tables,
            self.integers,
            factors.unsqueeze(1),
        )

    def steps(self) -> Tensor:
        """Return the step of each table, (T,)."""
        return self.log_steps.exp()

    def offsets(self) -> Tensor | None:
        """Return the offset of each table, (T,)."""
        return self.offset

    def begin(self, place: int, weight: Tensor) -> None:
        """Set a table's step by its first weights."""
        values = weight.double()
        moments = torch.stack([values.new_tensor(values.numel()), values.sum(), (values**2).sum()])
        self.log_steps[place] = self._first_steps(moments.unsqueeze(1))[0].log()

    @torch.no_grad()
    def measure(self) -> None:
        """Set the steps by the rows read since the last time; those of tables not read stay."""
        is_read = self._moments[0] > 0
        steps = self._first_steps(self._moments[:, is_read])
        self.log_steps[is_read] = steps.log().to(self.log_steps.dtype)
        self._moments.zero_()

    def _measured(self, vectors: Tensor, tables: Tensor) -> Tensor:
        """Return number, sum and sum of squares of the values of each table, (3, T) float64."""
        sums = torch.stack(
            [
                torch.full_like(vectors[:, 0], vectors.shape[1]),
                vectors.sum(dim=1),
                vectors.square().sum(dim=1),
            ]
        )
        found = sums.new_zeros(3, len(self.group.tables), dtype=torch.float64)
        return found.index_add_(1, tables, sums.double())

    def _first_steps(self, moments: Tensor) -> Tensor:
        """Return LSQ+'s first step, max |mean +- 3 deviations| / 2^(b-1), of (3, T) moments.

        Its source gives it for weights, in section 3.2.1.
        """
        count, total, squares = moments
        mean = total / count
        deviation = (squares / count - mean**2).clamp(min=0).sqrt()
        steps: Tensor = (mean.abs() + 3 * deviation) / -self.integers.low
        return steps.clamp(min=_SMALLEST_STEP)


class LSQ(QuantisedMethod):
    """Tables trained for b bits with learned steps, in one fit.

    Serving takes ceil(D b / 8) bytes for a row and 4 or 8 for a table. Rows of width 1 take their
    whole byte, with 8 bits. Training takes what float32 tables take.

    Steps and offsets are among the parameters of the trainer's dense optimizer.

    Args:
        bits: see `QuantisedMethod`.
        offset: whether an offset is learned (LSQ+), or none (LSQ).
        measured_steps: updates at first in which steps are measured, not learned.
        init_std: see `QuantisedMethod`.

    Raises:
        ValueError: on a number out of its range.
    """

    why_unshared = (
        "steps are measured over whole tables, which no process has, before they are learned"
    )

    def __init__(
        self,
        *,
        bits: int | None = 4,
        offset: bool = True,
        measured_steps: int = 100,
        init_std: float | None = None,
    ) -> None:
        super().__init__(bits=bits, init_std=init_std)
        if measured_steps < 0:
            raise ValueError(f"LSQ: measured_steps must not be negative, got {measured_steps}")
        self.offset = offset
        self.measured_steps = measured_steps

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
            transform=lambda group: LearnedSteps(group, bits, has_offset=self.offset),
            num_offsets=int(self.offset),
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

    def _step(self, tables: FakeQuantisedTables) -> Step:
        learned = [t for t in tables.roundings if isinstance(t, LearnedSteps)]

        def step(updates: Updates, batches: Sequence[Batch]) -> float:
            is_measuring = updates.step < self.measured_steps
            for rounding in learned:
                rounding.is_measuring = is_measuring
            loss = updates.update(batches)
            if is_measuring:
                for rounding in learned:
                    rounding.measure()
            return loss

        return step
