"""What the methods share whose rows are computed: a design within a budget, and its tables."""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from recemb.tables.computed import ComputedTables
from recemb.tables.full import full_tables
from recemb.tables.initial import Initial
from recemb.tables.method import Budget, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.row_source import RowSource
from recemb.tables.spec import TableSpec, refuse_any_id


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a method decides before anything is allocated.

    Attributes:
        make: for each source, what makes it on a device.
        source_of: the source of each computed table; the other tables stay as they are.
        parameters: the hyper-parameters that were chosen, plain JSON types.
    """

    make: Mapping[str, Callable[[torch.device], RowSource]]
    source_of: Mapping[str, str]
    parameters: Mapping[str, Any] = field(default_factory=dict)


class ComputedMethod(Method):
    """A method whose rows are computed, trained by a single fit.

    A table is computed only where that takes less than the table itself; the others stay, and keep
    their row-sparse updates. The computed parameters belong to the trainer's dense optimizer.

    Args:
        init_std: standard deviation of the initial vectors; None for the uniform distribution of
            DLRM.
    """

    def __init__(self, *, init_std: float | None) -> None:
        self.init_std = init_std

    @abc.abstractmethod
    def design(self, specs: Sequence[TableSpec], budget: Budget | None) -> Design:
        """Return the largest design within `budget`; the smallest there is if none fits it."""

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return what `build` would make, allocating no table; see `Method`."""
        refuse_any_id(specs, type(self).__name__)
        made = self.design(specs, budget)
        storage = self._tables(made, specs, None, torch.device("meta")).storage()
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
    ) -> ComputedTables:
        """Return untrained tables within `budget`; see `Method`.

        Raises:
            ValueError: if the budget is below the smallest size that the method has.
        """
        refuse_any_id(specs, type(self).__name__)
        made = self.design(specs, budget)
        if budget is not None:
            storage = self._tables(made, specs, None, torch.device("meta")).storage()
            budget.require(storage.serve_bytes, specs, owner=type(self).__name__)
        tables = self._tables(made, specs, optimizer, device, seed=seed)
        tables.initialise(seed)
        return tables

    def std(self, spec: TableSpec) -> float:
        """Return the standard deviation that a table's initial vectors are to have."""
        return Initial.dlrm(spec.num_embeddings).std if self.init_std is None else self.init_std

    def _tables(
        self,
        made: Design,
        specs: Sequence[TableSpec],
        optimizer: TableOptimizer | None,
        device: torch.device,
        seed: int = 0,
    ) -> ComputedTables:
        rest = [spec for spec in specs if spec.name not in made.source_of]
        planned = None
        if rest:
            planned = full_tables(
                rest, optimizer=optimizer, seed=seed, init_std=self.init_std, device=device
            )
        return ComputedTables(
            specs,
            sources={name: make(device) for name, make in made.make.items()},
            source_of=made.source_of,
            planned=planned,
            optimizer=optimizer,
        )


def largest_size(
    num_bytes: Callable[[int], int], budget: Budget | None, specs: Sequence[TableSpec], *, most: int
) -> int:
    """Return the largest size, from 1 to `most`, whose bytes keep `budget`, by bisection.

    Args:
        num_bytes: the bytes of a size; they never fall as the size grows.
        budget: None for the largest size.
        specs: the tables.
        most: the largest size.

    Returns:
        1 if none fits.
    """
    if budget is None:
        return most
    allowed = budget.allowed_bytes(specs)
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if num_bytes(middle) <= allowed:
            low = middle
        else:
            high = middle - 1
    return low
