"""Really smaller tables: without the rows that are switched off and the columns that are cut.

Shapes: `n` ids of a table, `D` its embedding_dim, `d` the columns that are kept.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recemb.tables.blueprint import Blueprint
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.program import ABSENT, Program, Remap
from recemb.tables.spec import TableSpec, output_keys


def compact(
    specs: Sequence[TableSpec],
    *,
    kept: Mapping[str, Tensor],
    widths: Mapping[str, int],
    weights: Mapping[str, Tensor] | None = None,
) -> Blueprint:
    """Return the blueprint of tables of which some rows and columns are left.

    Vectors are as wide as before: what is cut are zeros behind the rows. An id whose row is
    switched off has the vector 0. A table that loses rows has a remap, int32, four bytes per id.

    Args:
        specs: the tables.
        kept: which rows (n,) of a table are left; all, where a table is not named.
        widths: how many columns d of a table are left; all, where it is not named.
        weights: the initial weights (n, D) of every table; None to draw them.

    Returns:
        The blueprint; a table without any row left keeps one, which nothing reads.
    """
    tables, programs, buffers, limits, initial = [], {}, {}, {}, {}
    for spec in specs:
        mask = kept.get(spec.name)
        width = widths.get(spec.name, spec.embedding_dim)
        program: Program = ()
        rows = torch.arange(spec.num_embeddings)
        if mask is not None and not bool(mask.all()):
            rows = mask.cpu().nonzero().view(-1)
            remap = torch.full((spec.num_embeddings,), ABSENT, dtype=torch.int32)
            remap[rows] = torch.arange(rows.numel(), dtype=torch.int32)
            name = f"{spec.name}.rows"
            buffers[name], limits[name] = remap, max(1, rows.numel())
            program = (Remap(buffer=name),)
        tables.append(PhysicalTable(name=spec.name, num_rows=max(1, rows.numel()), width=width))
        programs[spec.name] = program
        if weights is not None:
            chosen = rows if rows.numel() else torch.zeros(1, dtype=torch.long)
            initial[spec.name] = weights[spec.name][chosen, :width].clone()
    outputs = tuple(
        Output(
            key=key,
            feature=feature,
            owner=spec.name,
            num_ids=spec.num_embeddings,
            embedding_dim=spec.embedding_dim,
            pooling=spec.pooling,
            lookups=(VirtualLookup(table=spec.name, program=programs[spec.name]),),
            padding=spec.embedding_dim - widths.get(spec.name, spec.embedding_dim),
        )
        for key, (spec, feature) in output_keys(specs).items()
    )
    return Blueprint(
        plan=LookupPlan(tables=tuple(tables), outputs=outputs, buffers=limits),
        buffers=buffers,
        initial=initial,
        parameters={
            "rows": {table.name: table.num_rows for table in tables},
            "widths": {table.name: table.width for table in tables},
        },
    )


def sparsity(
    kept: Mapping[str, Tensor], widths: Mapping[str, int], specs: Sequence[TableSpec]
) -> float:
    """Return the share of the values of `specs` that are gone, indices not counted.

    Source: OptEmbed, 1 - sum_i(rows kept of field i * d_i) / (N * D), over tables of one width.
    """
    left = sum(
        int(kept[s.name].sum()) * widths.get(s.name, s.embedding_dim)
        if s.name in kept
        else s.num_embeddings * widths.get(s.name, s.embedding_dim)
        for s in specs
    )
    return 1 - left / sum(s.num_embeddings * s.embedding_dim for s in specs)
