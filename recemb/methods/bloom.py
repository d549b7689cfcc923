"""Bloom embeddings: the vector of an id is the sum of k hashed rows.

    e(i) = sum_{j=1..k} E[h_j(i)]

Source: Serra and Karatzoglou, "Getting Deep Recommenders Fit: Bloom Embeddings for Sparse Binary
Input/Output Networks", RecSys 2017: the k bits that an item sets in a binary input of m
positions, times the first layer's weights. Departures: a row that two hashes of an id agree on
counts twice, where a bit is set once; bags sum over their items, where bits are set by any of them.
Only the input is embedded so; their recovery of a binary output has no place here.
"""

from collections.abc import Sequence

from recemb.methods.hashed import HashedRows, Scope
from recemb.tables.blueprint import Blueprint, PlannedMethod
from recemb.tables.method import Budget, IdCounts
from recemb.tables.spec import TableSpec


class Bloom(PlannedMethod):
    """The sum of `lookups` hashed rows of one table; with two it is double hashing.

    Args:
        lookups: k, rows of an id.
        exact_below: tables of at most so many ids are not compressed.
        scope: "per_feature", or "multiplexed" for one table of all features.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions.

    Raises:
        ValueError: if `lookups` is below 1, or `scope` is unknown.
    """

    takes_any_id = True

    def __init__(
        self,
        *,
        lookups: int = 4,
        exact_below: int = 100,
        scope: Scope = "per_feature",
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        if lookups < 1:
            raise ValueError(f"Bloom: lookups must be at least 1, got {lookups}")
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
