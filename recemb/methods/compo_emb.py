"""CompoEmb: the vector of an id is composed of rows of its quotient and its remainder.

    e(i) = Q[i // c] * R[i mod c]        (product; also sum or concatenation)

Source: Shi et al., "Compositional Embeddings Using Complementary Partitions for Memory-Efficient
Recommendation Systems", KDD 2020, section 3. Distinct ids have distinct pairs of rows. The factors
are drawn so that the product has the standard deviation of a full table's row; with both drawn like
rows, as the published code does it, products are so small that their tables hardly train.

Multiplexed, the quotients and remainders of all tables are hashed into the same rows (Coleman et
al., "Unified Embedding", NeurIPS 2023). Pairs of rows are then distinct with high probability only,
but the rows are as many as the budget allows, also below the least that tables of their own need.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from recemb.ids.hashing import hash_seed as seed_of
from recemb.methods.hashed import (
    Scope,
    check_scope,
    outputs_of,
    refuse_added_partitions,
    shared_name,
)
from recemb.tables.blueprint import Blueprint, PlannedMethod, largest
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan, PhysicalTable, VirtualLookup
from recemb.tables.method import Budget, IdCounts
from recemb.tables.program import Digit, Hash
from recemb.tables.spec import TableSpec

_STEPS = 1 << 20
"""Shared rows take one in so many steps of the full size of the tables that share them."""


class CompoEmb(PlannedMethod):
    """Quotient and remainder by c, the same c for all tables: the least that fits the budget.

    A table stays as it is where quotient and remainder need as many rows as it has.

    Args:
        combine: "product" (the paper's choice), "sum" or "concat".
        scope: "per_feature", or "multiplexed" for one table of all quotients and remainders; not
            for "sum".
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions of "multiplexed".

    Raises:
        ValueError: on an unknown word, or for "sum" with "multiplexed".
    """

    def __init__(
        self,
        *,
        combine: Literal["product", "sum", "concat"] = "product",
        scope: Scope = "per_feature",
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        if combine not in ("product", "sum", "concat"):
            raise ValueError(f"CompoEmb: combine must be product, sum or concat, got '{combine}'")
        check_scope(scope)
        if scope == "multiplexed":
            refuse_added_partitions("CompoEmb", "combine", combine)
        self.combine: Literal["product", "sum", "concat"] = combine
        self.scope = scope
        self.init_std = init_std
        self.hash_seed = hash_seed

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the blueprint of the least c within `budget`, or the smallest there is.

        Raises:
            ValueError: if a vector cannot be cut in two, for "concat".
        """
        if budget is None:
            return self._of(specs, 1)
        allowed = budget.allowed_bytes(specs)
        # Beyond the root of the largest table every table only grows.
        most = math.isqrt(max(spec.num_embeddings for spec in specs)) + 1
        least = min(range(1, most + 1), key=lambda c: self._num_bytes(specs, c))
        low, high = 1, least
        while low < high:
            middle = (low + high) // 2
            if self._num_bytes(specs, middle) <= allowed:
                high = middle
            else:
                low = middle + 1
        if self.scope == "per_feature":
            return self._of(specs, low)
        return largest(lambda size: self._multiplexed(specs, low, size), budget, specs, most=_STEPS)

    def _num_bytes(self, specs: Sequence[TableSpec], c: int) -> int:
        return sum(4 * self._num_values(spec, c) for spec in specs)

    def _num_values(self, spec: TableSpec, c: int) -> int:
        rows = spec.num_embeddings
        if self._is_composed(spec, c):
            rows = -(-rows // c) + c
            if self.combine == "concat":
                return rows * self._part_width(spec)
        return rows * spec.embedding_dim

    def _is_composed(self, spec: TableSpec, c: int) -> bool:
        is_cut = self.combine == "concat" and spec.embedding_dim == 1
        return not is_cut and c > 1 and -(-spec.num_embeddings // c) + c < spec.num_embeddings

    def _part_width(self, spec: TableSpec) -> int:
        if spec.embedding_dim % 2:
            raise ValueError(
                f"CompoEmb: vectors of {spec.embedding_dim} values (table '{spec.name}') cannot be "
                "cut in two; choose an even embedding_dim, or combine=product or sum"
            )
        return spec.embedding_dim // 2

    def _of(self, specs: Sequence[TableSpec], c: int) -> Blueprint:
        tables: list[PhysicalTable] = []
        initial: dict[str, Initial] = {}
        lookups: dict[str, tuple[VirtualLookup, ...]] = {}
        for spec in specs:
            if not self._is_composed(spec, c):
                parts = [(spec.name, spec.num_embeddings, spec.embedding_dim)]
                lookups[spec.name] = (VirtualLookup(table=spec.name),)
            else:
                quotients, width = -(-spec.num_embeddings // c), self._row_width(spec)
                parts = [
                    (f"{spec.name}_quotient", quotients, width),
                    (f"{spec.name}_remainder", c, width),
                ]
                lookups[spec.name] = tuple(
                    VirtualLookup(table=name, program=(digit,))
                    for (name, _, _), digit in zip(parts, _digits(c), strict=True)
                )
            for name, num_rows, width in parts:
                tables.append(PhysicalTable(name=name, num_rows=num_rows, width=width))
                initial[name] = self._initial(spec, num_parts=len(parts))
        return self._blueprint(specs, tables, initial, lookups, c)

    def _multiplexed(self, specs: Sequence[TableSpec], c: int, size: int) -> Blueprint:
        tables: list[PhysicalTable] = []
        initial: dict[str, Initial] = {}
        lookups: dict[str, tuple[VirtualLookup, ...]] = {}
        members: dict[tuple[str, int], list[TableSpec]] = {}
        for spec in specs:
            if self._is_composed(spec, c):
                width = self._row_width(spec)
                members.setdefault((shared_name(spec, width), width), []).append(spec)
                continue
            tables.append(
                PhysicalTable(
                    name=spec.name, num_rows=spec.num_embeddings, width=spec.embedding_dim
                )
            )
            initial[spec.name] = self._initial(spec, num_parts=1)
            lookups[spec.name] = (VirtualLookup(table=spec.name),)
        for (name, width), sharing in members.items():
            full = sum(s.num_embeddings * s.embedding_dim for s in sharing) // width
            num_rows = max(1, full * size // _STEPS)
            tables.append(PhysicalTable(name=name, num_rows=num_rows, width=width))
            largest_table = max(sharing, key=lambda s: s.num_embeddings)
            initial[name] = self._initial(largest_table, num_parts=2)
            for spec in sharing:
                salts = [seed_of(self.hash_seed, spec.feature_names[0], j) for j in range(2)]
                lookups[spec.name] = tuple(
                    VirtualLookup(table=name, program=(digit, Hash(seed=salt, num_rows=num_rows)))
                    for digit, salt in zip(_digits(c), salts, strict=True)
                )
        return self._blueprint(specs, tables, initial, lookups, c)

    def _blueprint(
        self,
        specs: Sequence[TableSpec],
        tables: Sequence[PhysicalTable],
        initial: Mapping[str, Initial],
        lookups: Mapping[str, tuple[VirtualLookup, ...]],
        c: int,
    ) -> Blueprint:
        outputs = outputs_of(specs, lookups, combine=self.combine)
        return Blueprint(
            plan=LookupPlan(tables=tuple(tables), outputs=outputs),
            initial=initial,
            parameters={"collisions": c, "rows": {t.name: t.num_rows for t in tables}},
        )

    def _row_width(self, spec: TableSpec) -> int:
        return self._part_width(spec) if self.combine == "concat" else spec.embedding_dim

    def _initial(self, spec: TableSpec, *, num_parts: int) -> Initial:
        std = self.init_std
        std = Initial.dlrm(spec.num_embeddings).std if std is None else std
        if num_parts > 1:
            std = {"product": std**0.5, "sum": std * 0.5**0.5, "concat": std}[self.combine]
        return Initial(distribution="uniform", spread=std * 3**0.5)


def _digits(c: int) -> tuple[Digit, Digit]:
    """Return the steps to quotient and remainder."""
    return Digit(divisor=c), Digit(modulus=c)
