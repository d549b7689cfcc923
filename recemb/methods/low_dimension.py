"""Narrower vectors with a learned projection: the baseline that every method has to beat.

e(i) = E[i] P,   E in R^{n x d},  P in R^{d x D},  d < D
"""

from collections.abc import Sequence

from recemb.tables.blueprint import Blueprint, PlannedMethod, largest
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import (
    LookupPlan,
    Output,
    PhysicalTable,
    Projection,
    VirtualLookup,
)
from recemb.tables.method import Budget, IdCounts
from recemb.tables.spec import TableSpec, output_keys


class LowDimension(PlannedMethod):
    """Rows of width d for all tables, projected to D; tables of width 1 stay.

    A table keeps its width where the projection would cost more than it saves. P is drawn so that
    the initial vectors have the standard deviation that is asked for.

    Args:
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
    """

    def __init__(self, *, init_std: float | None = None) -> None:
        self.init_std = init_std

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the blueprint of the largest d within `budget`, or that of d = 1."""
        most = max(spec.embedding_dim for spec in specs)
        return largest(lambda d: self._of(specs, d), budget, specs, most=most)

    def _of(self, specs: Sequence[TableSpec], d: int) -> Blueprint:
        widths = {spec.name: mixed_width(spec, d) for spec in specs}
        made = mixed_dimension(specs, widths, init_std=self.init_std)
        return Blueprint(plan=made.plan, initial=made.initial, parameters={"width": d})


def mixed_width(spec: TableSpec, d: int) -> int:
    """Return d, or the table's own width where rows of d and a projection take no less."""
    full, wanted = spec.num_embeddings * spec.embedding_dim, min(d, spec.embedding_dim)
    projected = spec.num_embeddings * wanted + wanted * spec.embedding_dim
    return wanted if projected < full else spec.embedding_dim


def mixed_dimension(
    specs: Sequence[TableSpec], widths: dict[str, int], *, init_std: float | None
) -> Blueprint:
    """Return the blueprint of tables of their own `widths`, projected to embedding_dim.

    A row of d values of standard deviation a, times a matrix of values of deviation b, has
    deviation a b sqrt(d): a is the one asked for, and b = 1 / sqrt(d).

    Args:
        specs: the tables.
        widths: width of each table, by name.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
    """
    tables, initial, projections = [], {}, []
    for spec in specs:
        d = widths[spec.name]
        tables.append(PhysicalTable(name=spec.name, num_rows=spec.num_embeddings, width=d))
        std = Initial.dlrm(spec.num_embeddings).std if init_std is None else init_std
        initial[spec.name] = Initial(distribution="uniform", spread=std * 3**0.5)
        if d != spec.embedding_dim:
            projections.append(Projection(name=spec.name, in_width=d, out_width=spec.embedding_dim))
    projected = {p.name for p in projections}
    outputs = tuple(
        Output(
            key=key,
            feature=feature,
            owner=spec.name,
            num_ids=spec.num_embeddings,
            embedding_dim=spec.embedding_dim,
            pooling=spec.pooling,
            lookups=(VirtualLookup(table=spec.name),),
            projection=spec.name if spec.name in projected else None,
        )
        for key, (spec, feature) in output_keys(specs).items()
    )
    return Blueprint(
        plan=LookupPlan(tables=tuple(tables), outputs=outputs, projections=tuple(projections)),
        initial=initial,
        parameters={"widths": dict(widths)},
    )
