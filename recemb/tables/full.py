"""Uncompressed tables: one row for every id."""

from collections.abc import Sequence

import torch

from recemb.tables.backend import Backend
from recemb.tables.bounds import Bounds
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import DType, LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.spec import TableSpec, output_keys


def full_plan(
    specs: Sequence[TableSpec], *, dtype: DType = "float32", step: float | None = None
) -> LookupPlan:
    """Return the plan in which every id has a row of its own.

    Args:
        specs: the tables.
        dtype: of the values.
        step: what integers are multiplied by; see `PhysicalTable`.
    """
    return LookupPlan(
        tables=tuple(
            PhysicalTable(
                name=spec.name,
                num_rows=spec.num_embeddings,
                width=spec.embedding_dim,
                dtype=dtype,
                step=step,
            )
            for spec in specs
        ),
        outputs=tuple(
            Output(
                key=key,
                feature=feature,
                owner=spec.name,
                num_ids=spec.num_embeddings,
                embedding_dim=spec.embedding_dim,
                pooling=spec.pooling,
                lookups=(VirtualLookup(table=spec.name),),
            )
            for key, (spec, feature) in output_keys(specs).items()
        ),
    )


def full_tables(
    specs: Sequence[TableSpec],
    *,
    optimizer: TableOptimizer | None = None,
    backend: Backend = "auto",
    bounds: Bounds = "error",
    seed: int = 0,
    init_std: float | None = None,
    dtype: DType = "float32",
    device: torch.device | str | None = None,
) -> PlannedTables:
    """Return uncompressed tables.

    Args:
        specs: the tables.
        optimizer: how rows are updated in the backward pass; None leaves it to torch.optim.
        backend: what updates the rows, see `PlannedTables`.
        bounds: what happens to an id outside [0, num_embeddings), see `BoundsCheck`.
        seed: of the initial weights.
        init_std: draw the initial weights from N(0, init_std); None draws them uniformly from
            +-1/sqrt(num_embeddings), see `Initial.dlrm`.
        dtype: of the values; float16 and bfloat16 are trained by stochastic rounding.
        device: where the tables live; "meta" allocates nothing.

    Raises:
        ValueError: on an unknown word, or if `init_std` is negative.
    """
    initial = {}
    if init_std is not None:
        rule = Initial(distribution="normal", spread=init_std)
        initial = {spec.name: rule for spec in specs}
    return PlannedTables(
        specs,
        full_plan(specs, dtype=dtype),
        optimizer=optimizer,
        backend=backend,
        bounds=bounds,
        initial=initial,
        seed=seed,
        device=device,
    )
