"""CompoEmb: the vector of an id is composed of rows of its quotient and its remainder.

    e(i) = Q[i // c] * R[i mod c]        (product; also sum or concatenation)

Source: Shi et al., "Compositional Embeddings Using Complementary Partitions for Memory-Efficient
Recommendation Systems", KDD 2020, section 3. Distinct ids have distinct pairs of rows. The factors
are drawn so that the product has the standard deviation of a full table's row; with both drawn like
rows, as the published code does it, products are so small that their tables hardly train.
"""

import math
from collections.abc import Sequence
from typing import Literal

from recemb.tables.blueprint import Blueprint, PlannedMethod
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.method import Budget, IdCounts
from recemb.tables.program import Digit, Program
from recemb.tables.spec import TableSpec, output_keys


class CompoEmb(PlannedMethod):
    """Quotient and remainder by c, the same c for all tables: the least that fits the budget.

    A table stays as it is where quotient and remainder need as many rows as it has.

    Args:
        combine: "product" (the paper's choice), "sum" or "concat".
        init_std: of the initial vectors; None for the uniform distribution of DLRM.

    Raises:
        ValueError: if `combine` is unknown.
    """

    def __init__(
        self,
        *,
        combine: Literal["product", "sum", "concat"] = "product",
        init_std: float | None = None,
    ) -> None:
        if combine not in ("product", "sum", "concat"):
            raise ValueError(f"CompoEmb: combine must be product, sum or concat, got '{combine}'")
        self.combine: Literal["product", "sum", "concat"] = combine
        self.init_std = init_std

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
        return self._of(specs, low)

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
        whole: Program = ()
        for spec in specs:
            std = self.init_std
            std = Initial.dlrm(spec.num_embeddings).std if std is None else std
            if not self._is_composed(spec, c):
                parts = [(spec.name, spec.num_embeddings, spec.embedding_dim, whole)]
            else:
                std = {"product": std**0.5, "sum": std * 0.5**0.5, "concat": std}[self.combine]
                width = spec.embedding_dim
                width = self._part_width(spec) if self.combine == "concat" else width
                quotients = -(-spec.num_embeddings // c)
                parts = [
                    (f"{spec.name}_quotient", quotients, width, (Digit(divisor=c),)),
                    (f"{spec.name}_remainder", c, width, (Digit(modulus=c),)),
                ]
            for name, num_rows, width, _ in parts:
                tables.append(PhysicalTable(name=name, num_rows=num_rows, width=width))
                initial[name] = Initial(distribution="uniform", spread=std * 3**0.5)
            lookups[spec.name] = tuple(
                VirtualLookup(table=name, program=program) for name, _, _, program in parts
            )
        outputs = tuple(
            Output(
                key=key,
                feature=feature,
                owner=spec.name,
                num_ids=spec.num_embeddings,
                embedding_dim=spec.embedding_dim,
                pooling=spec.pooling,
                lookups=lookups[spec.name],
                combine=self.combine if len(lookups[spec.name]) > 1 else "concat",
            )
            for key, (spec, feature) in output_keys(specs).items()
        )
        return Blueprint(
            plan=LookupPlan(tables=tuple(tables), outputs=outputs),
            initial=initial,
            parameters={"collisions": c},
        )
