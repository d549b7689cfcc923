"""Hash embeddings: a sum of k hashed rows, weighted by learned importances of the id.

    e(i) = sum_j p_j(i) E[h_j(i)],   p(i) in R^k

Source: Svenstrup, Hansen and Winther, "Hash Embeddings for Efficient Word Representations", NeurIPS
2017, section 2. Departure: the importances are not appended to the vector (their option).
"""

from collections.abc import Sequence

from recemb.methods.hashed import HashedRows, Scope
from recemb.tables.blueprint import Blueprint, PlannedMethod
from recemb.tables.method import Budget, IdCounts
from recemb.tables.spec import TableSpec


class HashEmbeddings(PlannedMethod):
    """A weighted sum of `lookups` hashed rows.

    Args:
        lookups: k, rows of an id.
        importance_share: rows of importances over a table's ids, times the budget's ratio; at 1
            they take k / D of what the rows take. Ids are hashed to them where they are fewer.
        exact_below: tables of at most so many ids have rows of their own, weighted like the others.
        scope: "per_feature" or "multiplexed"; importances are always per table.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions.

    Raises:
        ValueError: if `lookups` is below 1 or `importance_share` not positive.
    """

    def __init__(
        self,
        *,
        lookups: int = 2,
        importance_share: float = 1.0,
        exact_below: int = 100,
        scope: Scope = "per_feature",
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        if lookups < 1 or importance_share <= 0:
            raise ValueError(
                f"HashEmbeddings: lookups must be at least 1 and importance_share positive, got "
                f"{lookups} and {importance_share}"
            )
        self.rows = HashedRows(
            num_lookups=lambda spec: lookups,
            row_width=lambda width: width,
            combine="weighted",
            scope=scope,
            exact_below=exact_below,
            init_std=init_std,
            seed=hash_seed,
            importance_rows=importance_share,
        )

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the largest blueprint within `budget`, or the smallest there is."""
        return self.rows.blueprint(specs, budget)
