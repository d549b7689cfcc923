"""Full tables: one float32 row per id, nothing compressed; what every method is compared with."""

from collections.abc import Sequence

import torch

from recemb.tables.backend import Backend
from recemb.tables.bounds import Bounds
from recemb.tables.full import full_tables
from recemb.tables.method import Budget, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.spec import TableSpec


class Full(Method):
    """One float32 row per id.

    Args:
        backend: what updates the rows, see `PlannedTables`.
        init_std: standard deviation of the initial weights; None for uniform draws from
            +-1/sqrt(num_embeddings).
        bounds: what happens to an id outside [0, num_embeddings), see `BoundsCheck`.
    """

    def __init__(
        self,
        *,
        backend: Backend = "auto",
        init_std: float | None = None,
        bounds: Bounds = "error",
    ) -> None:
        self.backend: Backend = backend
        self.init_std = init_std
        self.bounds: Bounds = bounds

    def plan(
        self,
        specs: Sequence[TableSpec],
        stats: IdCounts,
        budget: Budget | None,
    ) -> Plan:
        """Return the full size, which is the only one; a smaller budget is infeasible."""
        device = torch.device("meta")
        storage = full_tables(specs, init_std=self.init_std, device=device).storage()
        return Plan.of(storage, specs, budget)

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
        """Return untrained full tables.

        Raises:
            ValueError: if the budget is below their size.
        """
        self.feasible_plan(specs, stats, budget)
        return full_tables(
            specs,
            optimizer=optimizer,
            backend=self.backend,
            bounds=self.bounds,
            seed=seed,
            init_std=self.init_std,
            device=device,
        )
