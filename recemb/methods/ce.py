"""Concatenated hashed rows: id i is h_1(i)'s row beside h_2(i)'s and so on, each D / k wide.

Source: the "hashing with several chunks" baseline of Tsang and Ahle, "Clustering the Sketch" (CCE),
NeurIPS 2023, section 1 (there called CE), without its clustering.
"""

from collections.abc import Sequence

from recemb.methods.hashed import HashedRows, Scope
from recemb.tables.blueprint import Blueprint, PlannedMethod
from recemb.tables.method import Budget, IdCounts
from recemb.tables.spec import TableSpec


class CE(PlannedMethod):
    """`lookups` hashed rows of width D / lookups side by side; vectors of width 1 have one.

    Args:
        lookups: k, rows of an id; it divides embedding_dim.
        exact_below: tables of at most so many ids are not compressed.
        scope: "per_feature" or "multiplexed", which is Unified Embedding with k fixed.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions.

    Raises:
        ValueError: if `lookups` is below 1.
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
            raise ValueError(f"CE: lookups must be at least 1, got {lookups}")
        self.lookups = lookups
        self.rows = HashedRows(
            num_lookups=lambda spec: 1 if spec.embedding_dim == 1 else lookups,
            row_width=self._row_width,
            scope=scope,
            exact_below=exact_below,
            init_std=init_std,
            seed=hash_seed,
        )

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the largest blueprint within `budget`, or the smallest there is.

        Raises:
            ValueError: if a vector cannot be cut into rows.
        """
        return self.rows.blueprint(specs, budget)

    def _row_width(self, width: int) -> int:
        if width == 1:
            return 1
        if width % self.lookups:
            raise ValueError(
                f"CE: vectors of {width} values cannot be cut into {self.lookups} rows; choose "
                "lookups that divides embedding_dim"
            )
        return width // self.lookups
