"""Hashing trick: id i reads row h(i) of a smaller table (Weinberger et al., ICML 2009, no sign)."""

from collections.abc import Sequence

from recemb.methods.hashed import HashedRows, HashRule, Scope
from recemb.tables.blueprint import Blueprint, PlannedMethod
from recemb.tables.method import Budget, IdCounts
from recemb.tables.spec import TableSpec


class Hashing(PlannedMethod):
    """One hashed row for an id; the rows of each table are in proportion to its ids.

    Args:
        hashing: "mixed" for a seeded hash that mixes (`recemb.ids.hashing`); "modulo" for the id
            modulo the number of rows, as in the VLDB 2024 study of Zhang et al.: ids that are
            ordered by frequency then collide in patterns, and features cannot share a table.
        exact_below: tables of at most so many ids are not compressed.
        scope: "per_feature", or "multiplexed" for one table of all features.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions.

    Raises:
        ValueError: on an unknown word, or for "modulo" with "multiplexed".
    """

    takes_any_id = True

    def __init__(
        self,
        *,
        hashing: HashRule = "mixed",
        exact_below: int = 100,
        scope: Scope = "per_feature",
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        self.rows = HashedRows(
            num_lookups=lambda spec: 1,
            row_width=lambda width: width,
            scope=scope,
            exact_below=exact_below,
            init_std=init_std,
            seed=hash_seed,
            hashing=hashing,
        )

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the largest blueprint within `budget`, or the smallest there is."""
        return self.rows.blueprint(specs, budget)
