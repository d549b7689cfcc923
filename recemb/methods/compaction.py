"""Really smaller tables: without the rows that are switched off and the columns that are cut.

Shapes: `n` ids of a table, `D` its embedding_dim, `d` the columns that are kept.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recemb.tables.blueprint import Blueprint
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.program import Program
from recemb.tables.ranked import Ranked, ranked_buffers, ranked_bytes
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
    switched off has the vector 0. A table that loses rows has an index, see
    `recemb.tables.ranked`; where that would be larger than what is lost, all rows stay, those that
    are switched off as zeros.

    Args:
        specs: the tables.
        kept: which rows (n,) of a table are left; all, where a table is not named.
        widths: how many columns d of a table are left; all, where it is not named.
        weights: the initial weights (n, D) of every table; None to draw them.

    Returns:
        The blueprint; a table without any row left keeps one, which nothing reads.
    """
    tables, buffers, initial = [], {}, {}
    programs: dict[str, Program] = {}
    for spec in specs:
        mask = kept.get(spec.name, torch.ones(spec.num_embeddings, dtype=torch.bool)).cpu()
        width = widths.get(spec.name, spec.embedding_dim)
        rows, num_kept = torch.arange(spec.num_embeddings), int(mask.sum())
        programs[spec.name] = ()
        if pays(spec, num_kept=num_kept, width=width):
            rows = mask.nonzero().view(-1) if num_kept else rows[:1]
            step = Ranked(words=f"{spec.name}.words", ranks=f"{spec.name}.ranks", size=num_kept)
            buffers[step.words], buffers[step.ranks] = ranked_buffers(mask)
            programs[spec.name] = (step,)
        tables.append(PhysicalTable(name=spec.name, num_rows=rows.numel(), width=width))
        if weights is not None:
            chosen = weights[spec.name][rows, :width]
            is_on = mask[rows].to(chosen.device).unsqueeze(1)
            initial[spec.name] = torch.where(is_on, chosen, 0)
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
        plan=LookupPlan(tables=tuple(tables), outputs=outputs),
        buffers=buffers,
        initial=initial,
        parameters={
            "rows": {table.name: table.num_rows for table in tables},
            "widths": {table.name: table.width for table in tables},
        },
    )


def pays(spec: TableSpec, *, num_kept: int, width: int) -> bool:
    """Return whether a table with so many rows and columns left is smaller without the others."""
    lost = 4 * (spec.num_embeddings - max(1, num_kept)) * width
    return lost > ranked_bytes(spec.num_embeddings)


def compact_bytes(spec: TableSpec, *, num_kept: int, width: int) -> int:
    """Return the bytes of a table of which so many rows and columns are left."""
    if pays(spec, num_kept=num_kept, width=width):
        return 4 * max(1, num_kept) * width + ranked_bytes(spec.num_embeddings)
    return 4 * spec.num_embeddings * width


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
