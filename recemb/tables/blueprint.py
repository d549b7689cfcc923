"""What a method decides before anything is allocated: a lookup plan and how it begins."""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from recemb.tables.backend import Backend
from recemb.tables.bounds import Bounds
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.method import Budget, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.spec import TableSpec, refuse_any_id


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """All that `PlannedTables` needs.

    Attributes:
        plan: which rows make which vectors.
        buffers: what its programs read.
        initial: how each physical table's weights are drawn, or what they are.
        projections: initial value of each projection; those left out are drawn.
        parameters: the hyper-parameters that were chosen, plain JSON types.
    """

    plan: LookupPlan
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    initial: Mapping[str, Initial | Tensor] = field(default_factory=dict)
    projections: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def serve_bytes(self) -> int:
        """Return the bytes that serving needs, without making anything."""
        tables = sum(
            t.num_rows * t.width * int(getattr(torch, t.dtype).itemsize) for t in self.plan.tables
        )
        projections = sum(4 * p.in_width * p.out_width for p in self.plan.projections)
        return tables + projections + sum(t.nbytes for t in self.buffers.values())

    def tables(
        self,
        specs: Sequence[TableSpec],
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
        backend: Backend = "auto",
        bounds: Bounds = "error",
    ) -> PlannedTables:
        """Return untrained tables; the arguments are those of `PlannedTables`."""
        return PlannedTables(
            specs,
            self.plan,
            optimizer=optimizer,
            backend=backend,
            bounds=bounds,
            buffers=self.buffers,
            initial={
                **self.initial,
                **{f"{name}.projection": p for name, p in self.projections.items()},
            },
            seed=seed,
            device=device,
        )


class PlannedMethod(Method):
    """A method whose tables a lookup plan describes, trained by a single fit.

    A subclass says in `blueprint` what it makes of a budget.

    Attributes:
        takes_any_id: whether tables may take any int64, see `ANY_ID`.
    """

    takes_any_id: ClassVar[bool] = False

    @abc.abstractmethod
    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the largest blueprint within `budget`; the smallest there is if none fits it."""

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return what `build` would make, allocating no table; see `Method`."""
        if not self.takes_any_id:
            refuse_any_id(specs, type(self).__name__)
        made = self.blueprint(specs, stats, budget)
        device = torch.device("meta")
        tables = made.tables(specs, optimizer=None, seed=0, device=device)
        storage = tables.storage()
        return Plan.of(storage, specs, budget, made.parameters)

    def build(
        self,
        specs: Sequence[TableSpec],
        stats: IdCounts,
        budget: Budget | None,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> PlannedTables:
        """Return untrained tables within `budget`; see `Method`.

        Raises:
            ValueError: if the budget is below the smallest size that the method has.
        """
        if not self.takes_any_id:
            refuse_any_id(specs, type(self).__name__)
        made = self.blueprint(specs, stats, budget)
        if budget is not None:
            budget.require(made.serve_bytes, specs, owner=type(self).__name__)
        return made.tables(specs, optimizer=optimizer, seed=seed, device=device)


def largest(
    make: Callable[[int], Blueprint],
    budget: Budget | None,
    specs: Sequence[TableSpec],
    *,
    most: int,
) -> Blueprint:
    """Return the blueprint of the largest size within `budget`, by bisection.

    Args:
        make: the blueprint of a size, from 1 to `most`; its bytes never fall as the size grows.
        budget: None for the largest size.
        specs: the tables.
        most: the largest size.

    Returns:
        That of size 1 if none fits.
    """
    if budget is None:
        return make(most)
    allowed = budget.allowed_bytes(specs)
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if make(middle).serve_bytes <= allowed:
            low = middle
        else:
            high = middle - 1
    return make(low)
