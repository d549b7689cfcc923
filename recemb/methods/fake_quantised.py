"""What the methods share that train tables so that they can be served in a few bits.

    e = q * step + offset,   q = clip(round((w - offset) / step), low, high)

in the forward pass, exactly as in serving; the backward pass treats rounding as the identity.

Shapes: `N` rows that were read, `D` the width of a group of tables, `T` its tables, `n` rows of a
table.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recemb.methods.quantised import QuantisedTables
from recemb.methods.quantised_rows import (
    IntegerRange,
    Integers,
    QuantisedForm,
    QuantisedRows,
    dequantise,
    fitting_bits,
    quantise,
)
from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec
from recemb.tables.transform import RowTransform


class FakeQuantise(torch.autograd.Function):
    """Rounds to integers times steps; the gradients are those of LSQ and LSQ+.

    With u = (w - offset) / step, g the incoming gradient and G a factor:

        dL/dw      = g             where low < u < high, else 0
        dL/dstep   = G g (q - u)   where low < u < high, else G g q
        dL/doffset = 0             where low < u < high, else G g

    those of step and offset being summed over all values that share them.

    Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv 1902.08153, equations
    3 and 5 and section 2.2; Bhalgat et al., "LSQ+", CVPR Workshops 2020, arXiv 2004.09576,
    equations 3 to 5.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        steps: Tensor,
        offsets: Tensor | None,
        places: Tensor,
        integers: IntegerRange,
        factors: Tensor,
    ) -> Tensor:
        """Return the rounded values (N, D).

        Args:
            ctx: autograd's.
            values: (N, D).
            steps: (S, 1), positive.
            offsets: (S, 1) or (S, D), or (1, D) for all rows; None for 0.
            places: (N,) int64, which of the steps and offsets a row takes.
            integers: the range.
            factors: (S, 1), what the gradients of steps and offsets are multiplied by.
        """
        step = _of_rows(steps, places)
        offset = None if offsets is None else _of_rows(offsets, places)
        units = (values if offset is None else values - offset) / step
        ctx.save_for_backward(units, places, factors)
        ctx.integers = integers
        ctx.offset_shape = None if offsets is None else offsets.shape
        return dequantise(integers.nearest(units), step, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients."""
        units, places, factors = ctx.saved_tensors
        is_inside = (units > ctx.integers.low) & (units < ctx.integers.high)
        grads: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = grad * is_inside
        if ctx.needs_input_grad[1]:
            q = ctx.integers.nearest(units)
            slope = torch.where(is_inside, q - units, q)
            total = (grad * slope).sum(dim=1, keepdim=True)
            grads[1] = _sum_by_place(total, places, factors.shape[0]) * factors
        if ctx.needs_input_grad[2]:
            num_offsets, width = ctx.offset_shape
            outside = grad.masked_fill(is_inside, 0)
            if width == 1:
                outside = outside.sum(dim=1, keepdim=True)
            outside = outside * _of_rows(factors, places)
            grads[2] = _sum_by_place(outside, places, num_offsets)
        return (*grads, None, None, None)


def fake_quantise(
    values: Tensor,
    steps: Tensor,
    offsets: Tensor | None,
    places: Tensor,
    integers: IntegerRange,
    factors: Tensor,
) -> Tensor:
    """Return rounded values; the arguments are those of `FakeQuantise.forward`."""
    apply: Callable[..., Tensor] = FakeQuantise.apply  # torch gives it no types
    return apply(values, steps, offsets, places, integers, factors)


class Take(torch.autograd.Function):
    """Takes rows of a small table, many times each."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, places: Tensor) -> Tensor:
        """Return the rows (N, C) of `table` (S, C) at `places` (N,)."""
        ctx.save_for_backward(places)
        ctx.num_places = table.shape[0]
        return table[places]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient (S, C) of `table`."""
        return _sum_by_place(grad, ctx.saved_tensors[0], ctx.num_places), None


def take(table: Tensor, places: Tensor) -> Tensor:
    """Return the rows (N, C) of `table` (S, C) at `places` (N,); S and C are small."""
    apply: Callable[..., Tensor] = Take.apply  # torch gives it no types
    return apply(table, places)


def _of_rows(shared: Tensor, places: Tensor) -> Tensor:
    """Return the rows (N, C) at `places`; what all rows share stays (1, C)."""
    return shared if shared.shape[0] == 1 else shared[places]


def _sum_by_place(rows: Tensor, places: Tensor, num_places: int) -> Tensor:
    """Return the sums (S, C) of rows (N, C) by their places (N,)."""
    if num_places == 1:
        return rows.sum(dim=0, keepdim=True)
    # Column by column, for index_add_ goes row by row.
    sums = [
        torch.bincount(places, column.contiguous(), minlength=num_places)
        for column in rows.unbind(dim=1)
    ]
    return torch.stack(sums, dim=1).to(rows.dtype)


class PassThrough(torch.autograd.Function):
    """Replaces values by others whose gradient goes to them unchanged."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, others: Tensor) -> Tensor:
        """Return `others`, of the shape of `values`."""
        return others.view_as(others)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient."""
        return grad, None


def pass_through(values: Tensor, others: Tensor) -> Tensor:
    """Return `others`; their gradient is that of `values`, of the same shape."""
    apply: Callable[..., Tensor] = PassThrough.apply  # torch gives it no types
    return apply(values, others)


class FakeQuantised(RowTransform):
    """Rounds the rows that are read, with a step, and perhaps an offset, for each table.

    Attributes:
        integers: the range.

    Args:
        group: the tables.
        bits: of a value; narrow rows use what their whole bytes hold, see `fitting_bits`.
    """

    def __init__(self, group: Group, bits: int) -> None:
        super().__init__(group)
        self.integers = Integers(bits=fitting_bits(group.width, bits))

    @abc.abstractmethod
    def steps(self) -> Tensor:
        """Return the step of each table, (T,), positive."""

    def offsets(self) -> Tensor | None:
        """Return the offset of each table, (T,); None for none."""
        return None

    @abc.abstractmethod
    def begin(self, place: int, weight: Tensor) -> None:
        """Set what is learned, or measured, for a table.

        Args:
            place: of the table in the group.
            weight: (n, D) its weights.
        """

    def rows(self, place: int, weight: Tensor) -> Callable[[int, int], Tensor]:
        """Return what returns the integers of some rows of a table, see `QuantisedRows.of`."""
        offsets = self.offsets()
        offset = None if offsets is None else offsets[place]
        step = self.steps()[place]
        return lambda first, last: quantise(weight[first:last], step, offset, self.integers)


class FakeQuantisedTables(QuantisedTables):
    """Float32 tables that are read rounded, by a `FakeQuantised` for each group.

    Args:
        specs: the tables.
        bits: of a value.
        transform: makes the rounding of a group.
        num_offsets: how many offsets a table has, 0 or 1.
        optimizer: how rows are updated.
        initial: how they are drawn.
        seed: of the initial weights.
        device: where the tables live.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        bits: int,
        transform: Callable[[Group], FakeQuantised],
        num_offsets: int = 0,
        optimizer: TableOptimizer | None,
        initial: Mapping[str, Initial | Tensor],
        seed: int,
        device: torch.device,
    ) -> None:
        forms = {
            spec.name: QuantisedForm(
                num_rows=spec.num_embeddings,
                width=spec.embedding_dim,
                bits=fitting_bits(spec.embedding_dim, bits),
                num_offsets=num_offsets,
            )
            for spec in specs
        }
        super().__init__(
            specs,
            full_plan(specs),
            forms=forms,
            optimizer=optimizer,
            initial=initial,
            transform=transform,
            seed=seed,
            device=device,
        )
        if device.type != "meta":
            self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Set what is learned, or measured, for each table, by its weights."""
        for rounding in self.roundings:
            for place, table in enumerate(rounding.group.tables):
                rounding.begin(place, self.table(table.name).detach())

    @property
    def roundings(self) -> list[FakeQuantised]:
        """Return what rounds, group by group."""
        return [t for t in self.transforms.all() if isinstance(t, FakeQuantised)]

    def rounding_of(self, name: str) -> tuple[FakeQuantised, int]:
        """Return what rounds a table, and the table's place there."""
        for rounding in self.roundings:
            for place, table in enumerate(rounding.group.tables):
                if table.name == name:
                    return rounding, place
        raise AssertionError(f"no table '{name}'")

    @torch.no_grad()
    def quantised(self, name: str) -> QuantisedRows:
        """Return the serving form of a table."""
        rounding, place = self.rounding_of(name)
        offsets = rounding.offsets()
        return QuantisedRows.of(
            rounding.rows(place, self.table(name).detach()),
            self.forms[name],
            steps=rounding.steps()[place : place + 1],
            offsets=None if offsets is None else offsets[place : place + 1],
        )
