"""How weights are drawn before training."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recemb.ids.hashing import hash_seed
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.program import Buffers
from recemb.tables.rounding import Grid

_TORCH_DRAWS = 16
_BLOCK_VALUES = 1 << 20
"""Values of a block of rows that are drawn together: 4 MB."""


@dataclass(frozen=True, kw_only=True)
class Initial:
    """A distribution of independent values.

    Attributes:
        distribution: "normal", or "uniform" in mean +- spread.
        spread: the standard deviation, or half the interval's length; not negative.
        mean: the mean.

    Raises:
        ValueError: on an unknown distribution or a negative spread.
    """

    distribution: Literal["normal", "uniform"]
    spread: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        if self.distribution not in ("normal", "uniform"):
            raise ValueError(
                f"Initial: distribution must be normal or uniform, got '{self.distribution}'"
            )
        if self.spread < 0:
            raise ValueError(f"Initial: spread must not be negative, got {self.spread}")

    @staticmethod
    def dlrm(num_rows: int) -> "Initial":
        """Return the uniform distribution in +-1/sqrt(num_rows).

        That of the DLRM reference implementation (Naumov et al., 2019) and of TorchRec.
        """
        return Initial(distribution="uniform", spread=num_rows**-0.5)

    @property
    def std(self) -> float:
        """Return the standard deviation."""
        return self.spread if self.distribution == "normal" else self.spread / 3**0.5

    def fill(self, target: Tensor, generator: torch.Generator) -> None:
        """Draw every value of `target`, of any floating-point type, on any device.

        Args:
            target: overwritten.
            generator: on the CPU.
        """
        is_direct = target.device.type == "cpu" and target.dtype == torch.float32
        values = target if is_direct else torch.empty(target.shape)
        if self.spread == 0:
            values.fill_(self.mean)
        elif self.distribution == "normal":
            values.normal_(self.mean, self.spread, generator=generator)
        else:
            low, high = self.mean - self.spread, self.mean + self.spread
            values.uniform_(low, high, generator=generator)
        if not is_direct:
            target.copy_(values)


def draw_weights(
    plan: LookupPlan,
    table_of: Callable[[str], Tensor],
    projections: Buffers,
    initial: Mapping[str, Initial | Tensor],
    seed: int,
) -> None:
    """Draw all weights in the plan's order, on the CPU: the same on every device.

    Args:
        plan: which tables and projections there are.
        table_of: returns the weights of a physical table, by its name; overwritten.
        projections: by their names; overwritten.
        initial: how a table is drawn, or what it is, by its name; what a projection is, by
            `NAME.projection`. Other tables are drawn as in DLRM, other projections so that vectors
            keep the rows' standard deviation; integers without a step start at 0.
        seed: of all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    for table in plan.tables:
        target = table_of(table.name).detach()
        rule = initial.get(table.name, Initial.dlrm(table.num_rows))
        if isinstance(rule, Tensor):
            target.copy_(rule)
        elif not table.is_trained:
            target.zero_()
        elif table.step is not None:
            drawn = torch.empty(target.shape)
            rule.fill(drawn, generator)
            grid = Grid(dtype=target.dtype, step=table.step, seed=hash_seed(seed, table.name))
            target.copy_(grid.apply(drawn, torch.arange(table.num_rows)))
        else:
            rule.fill(target, generator)
    _draw_projections(plan, projections, initial, generator)


def draw_blocks(
    plan: LookupPlan,
    write: Callable[[str, int, Tensor], None],
    projections: Buffers,
    initial: Mapping[str, Initial | Tensor],
    seed: int,
) -> None:
    """Draw the weights that `draw_weights` draws, block by block, so that no table is made whole.

    Args:
        plan: see `draw_weights`, here and below.
        write: takes a table's name, a first row, and the rows (N, D) from there on.
        projections: overwritten.
        initial: see `draw_weights`.
        seed: see `draw_weights`.
    """
    generator = torch.Generator().manual_seed(seed)
    for table in plan.tables:
        rule = initial.get(table.name, Initial.dlrm(table.num_rows))
        for first, last in _blocks(table.num_rows, table.width):
            if isinstance(rule, Tensor):
                write(table.name, first, rule[first:last])
                continue
            block = torch.zeros(last - first, table.width)
            if table.is_trained:
                rule.fill(block, generator)
            if table.step is not None:
                dtype = getattr(torch, table.dtype)
                grid = Grid(dtype=dtype, step=table.step, seed=hash_seed(seed, table.name))
                block = grid.apply(block, torch.arange(first, last))
            write(table.name, first, block)
    _draw_projections(plan, projections, initial, generator)


def _blocks(num_rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield first row, and last plus one, of blocks that are drawn as if they were one.

    torch draws normal values sixteen at a time, and the last sixteen of a tensor again if their
    number is no multiple of that; so blocks are multiples of sixteen rows, and the last is not
    shorter.
    """
    rows = max(1, _BLOCK_VALUES // (_TORCH_DRAWS * width)) * _TORCH_DRAWS
    first = 0
    while first < num_rows:
        last = first + rows if num_rows - first >= rows + _TORCH_DRAWS else num_rows
        yield first, last
        first = last


def _draw_projections(
    plan: LookupPlan,
    projections: Buffers,
    initial: Mapping[str, Initial | Tensor],
    generator: torch.Generator,
) -> None:
    for projection in plan.projections:
        matrix = projections[projection.name].detach()
        given = initial.get(f"{projection.name}.projection")
        if isinstance(given, Tensor):
            matrix.copy_(given)
        else:
            drawn = torch.empty(matrix.shape).uniform_(-1, 1, generator=generator)
            # A root mean square of 1 / sqrt(in_width) keeps the rows' standard deviation.
            matrix.copy_(drawn / drawn.square().sum(dim=0).mean().sqrt())
