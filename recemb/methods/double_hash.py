"""Double hashing: the vector of an id is the sum of two hashed rows (Zhang et al., RecSys 2020).

"Model Size Reduction Using Frequency Based Double Hashing for Recommender Systems".
"""

from collections.abc import Sequence

from recemb.methods.hashed import HashedRows, Scope
from recemb.tables.blueprint import Blueprint, PlannedMethod
from recemb.tables.method import Budget, IdCounts
from recemb.tables.spec import TableSpec


class DoubleHash(PlannedMethod):
    """The sum of `lookups` hashed rows of one table; two ids share a vector only if all agree.

    Args:
        lookups: rows of an id; more than two make it the Bloom embedding of Serra and Karatzoglou
            (RecSys 2017).
        exact_below: tables of at most so many ids are not compressed.
        scope: "per_feature" or "multiplexed".
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions.

    Raises:
        ValueError: if `lookups` is below 1.
    """

    takes_any_id = True

    def __init__(
        self,
        *,
        lookups: int = 2,
        exact_below: int = 100,
        scope: Scope = "per_feature",
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        if lookups < 1:
            raise ValueError(f"DoubleHash: lookups must be at least 1, got {lookups}")
        self.rows = HashedRows(
            num_lookups=lambda spec: 1 if spec.num_embeddings <= exact_below else lookups,
            row_width=lambda width: width,
            combine="sum",
            scope=scope,
            exact_below=exact_below,
            init_std=init_std,
            seed=hash_seed,
        )

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the largest blueprint within `budget`, or the smallest there is."""
        return self.rows.blueprint(specs, budget)
