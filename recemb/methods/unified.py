"""Unified Embedding: one table for all features, several hashed rows side by side for each id.

    emb_t(v) = concat_{j=1..k_t} E[h_{t,j}(v)],   E in R^{M x w}

Source: Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML
Systems", NeurIPS 2023, section 3 (feature multiplexing), and the authors' layer in TensorFlow
Recommenders. Collisions between features fall into directions that the network can tell apart;
those within a feature do not, and several rows for an id make them rare.
"""

from collections.abc import Sequence
from typing import Literal

from recemb.methods.hashed import HashedRows
from recemb.tables.blueprint import Blueprint, PlannedMethod
from recemb.tables.method import Budget, IdCounts
from recemb.tables.spec import TableSpec


class Unified(PlannedMethod):
    """One table for all features of a width.

    Tables of width 1 (first-order weights) are multiplexed among themselves, one row for an id.

    Args:
        lookups: k, rows of an id; "auto" gives 1 to tables of at most `auto_threshold` ids and 3
            to the others, so that a feature's vector is as wide as it has need of: models that
            want vectors of one width cannot take it.
        row_width: w; 0 for embedding_dim / k, or embedding_dim / 2 with "auto".
        exact_below: tables of at most so many ids keep a row of their own for every id.
        exact_if_fits: whether nothing is hashed where there are as many rows as ids; the paper
            always hashes, for it wants no vocabulary.
        auto_threshold: see `lookups`.
        multiplex: whether all features share one table; False hashes each into a table of its own
            of proportional size, which is the baseline at the same bytes.
        num_tables: one table, or a few of equal size that take the lookups in turn, as in the
            authors' layer, which spreads hot rows.
        init_bound: initial weights are uniform in +- this; 0.05 is the authors' choice.
        hash_seed: of the hash functions, which are salted with feature name and lookup.

    Raises:
        ValueError: if `lookups` or `num_tables` is below 1, or several tables are asked for where
            nothing is shared.
    """

    takes_any_id = True

    starts_as_full = False  # several lookups of shared rows

    def __init__(
        self,
        *,
        lookups: int | Literal["auto"] = 2,
        row_width: int = 0,
        exact_below: int = 100,
        exact_if_fits: bool = False,
        auto_threshold: int = 300,
        multiplex: bool = True,
        num_tables: int = 1,
        init_bound: float = 0.05,
        hash_seed: int = 0,
    ) -> None:
        if lookups != "auto" and lookups < 1:
            raise ValueError(f"Unified: lookups must be at least 1 or auto, got {lookups}")
        if num_tables < 1 or (num_tables > 1 and not multiplex):
            raise ValueError(
                f"Unified: num_tables must be at least 1, and 1 without multiplex, got {num_tables}"
            )
        self.lookups = lookups
        self.row_width = row_width
        self.auto_threshold = auto_threshold
        self.rows = HashedRows(
            num_lookups=self._num_lookups,
            row_width=self._row_width,
            scope="multiplexed" if multiplex else "per_feature",
            exact_below=exact_below,
            exact_if_fits=exact_if_fits,
            init_std=init_bound / 3**0.5,
            num_tables=num_tables,
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

    def _num_lookups(self, spec: TableSpec) -> int:
        if spec.embedding_dim == 1:
            return 1
        if self.lookups == "auto":
            return 1 if spec.num_embeddings <= self.auto_threshold else 3
        return self.lookups

    def _row_width(self, width: int) -> int:
        if width == 1:
            return 1
        if self.row_width:
            return self.row_width
        parts = 2 if self.lookups == "auto" else self.lookups
        if width % parts:
            raise ValueError(
                f"Unified: vectors of {width} values cannot be cut into {parts} rows; choose "
                "lookups that divides embedding_dim, or set row_width"
            )
        return width // parts
