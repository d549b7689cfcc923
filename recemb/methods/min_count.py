"""Minimum count: frequent ids keep their rows, all others share one.

The filter that every production system has, as a method with a budget: the most frequent ids that
fit are kept, which is a minimum count chosen per table.
"""

from collections.abc import Sequence

from recemb.methods.adapt_emb import RankedRows
from recemb.tables.blueprint import Blueprint, PlannedMethod
from recemb.tables.method import Budget, IdCounts
from recemb.tables.spec import TableSpec


class MinCount(PlannedMethod):
    """Rows in proportion to ids, one for each of the most frequent ids and one for the rest.

    Args:
        exact_below: tables of at most so many ids are not compressed.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
    """

    def __init__(self, *, exact_below: int = 100, init_std: float | None = None) -> None:
        self.rows = RankedRows(
            head=lambda rows: rows - 1, exact_below=exact_below, init_std=init_std, hash_seed=0
        )

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the largest blueprint within `budget`, or the smallest there is."""
        return self.rows.blueprint(specs, stats, budget)
