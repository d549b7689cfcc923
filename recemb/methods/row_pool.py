"""Rows that several fields share, held by some of their ids; the other ids have none.

A pool is the fields whose tables have the same widths: it has a physical table for each of these,
and an id has the same row in all of them.

Shapes: `n` ids of a pool, `R` its rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.methods.watched_tables import Field
from recemb.tables.listed import Listed
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.program import ABSENT, Offset, Program, Remap
from recemb.tables.spec import TableSpec, output_keys


@dataclass(frozen=True, kw_only=True)
class RowPool:
    """Fields whose tables have the same widths, and share rows.

    Attributes:
        name: names the buffers and the physical tables.
        fields: the fields; the number of an id of a field is `firsts` more than the id.
        firsts: see above.
        widths: of the tables of each field, in order.
        num_rows: R.
    """

    name: str
    fields: tuple[Field, ...]
    firsts: tuple[int, ...]
    widths: tuple[int, ...]
    num_rows: int

    @property
    def num_ids(self) -> int:
        """Return n."""
        return self.firsts[-1] + self.fields[-1][0].num_embeddings

    @property
    def key_dtype(self) -> torch.dtype:
        """Return the type of the list of ids in serving."""
        return torch.int32 if self.num_ids < 2**31 - 1 else torch.int64

    @property
    def index_bytes(self) -> int:
        """Return the bytes of the list of ids in serving."""
        return self.num_rows * self.key_dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Return the bytes of all rows."""
        return 4 * self.num_rows * sum(self.widths)

    def table(self, place: int) -> str:
        """Return the name of the physical table of the `place`th width."""
        return f"{self.name}.{place}"

    def program(self, field: Field, *, is_served: bool) -> Program:
        """Return the steps from an id of a field to its row, ABSENT where it has none."""
        first = self.firsts[self.fields.index(field)]
        if is_served:
            keys = f"{self.name}.ids"
            return (Listed(keys=keys, size=self.num_rows, first=first, gives="row"),)
        remap = Remap(buffer=f"{self.name}.rows")
        return (Offset(first=first), remap) if first else (remap,)


def names_of(field: Field) -> list[str]:
    """Return the names of a field's tables."""
    return [spec.name for spec in field]


def pools_of(shapes: Mapping[tuple[object, ...], list[Field]], share: float) -> list[RowPool]:
    """Return a pool for each shape, with a share of its ids as rows, at least one."""
    pools = []
    for number, fields in enumerate(shapes.values()):
        firsts = [0]
        for field in fields:
            firsts.append(firsts[-1] + field[0].num_embeddings)
        pools.append(
            RowPool(
                name=f"pool{number}",
                fields=tuple(fields),
                firsts=tuple(firsts[:-1]),
                widths=tuple(spec.embedding_dim for spec in fields[0]),
                num_rows=max(1, int(firsts[-1] * share)),
            )
        )
    return pools


def spread_rows(pool: RowPool) -> Tensor:
    """Return the rows (n,) of all ids where those at equal distances have one."""
    rows = torch.full((pool.num_ids,), ABSENT, dtype=torch.int32)
    ids = torch.arange(pool.num_rows) * pool.num_ids // pool.num_rows
    rows[ids] = torch.arange(pool.num_rows, dtype=torch.int32)
    return rows


def pool_plan(
    specs: Sequence[TableSpec], pools: Sequence[RowPool], *, is_served: bool
) -> LookupPlan:
    """Return the plan that reads the rows' numbers by id, or the sorted lists of serving."""
    lookups, limits, tables = {}, {}, []
    for pool in pools:
        names = [pool.table(place) for place in range(len(pool.widths))]
        for name, width in zip(names, pool.widths, strict=True):
            tables.append(PhysicalTable(name=name, num_rows=pool.num_rows, width=width))
        for field in pool.fields:
            program = pool.program(field, is_served=is_served)
            for name, spec in zip(names, field, strict=True):
                lookups[spec.name] = VirtualLookup(table=name, program=program)
        if is_served:
            limits[f"{pool.name}.ids"] = torch.iinfo(pool.key_dtype).max
        else:
            limits[f"{pool.name}.rows"] = pool.num_rows
    for spec in specs:
        if spec.name not in lookups:
            lookups[spec.name] = VirtualLookup(table=spec.name)
            rows, width = spec.num_embeddings, spec.embedding_dim
            tables.append(PhysicalTable(name=spec.name, num_rows=rows, width=width))
    outputs = tuple(
        Output(
            key=key,
            feature=feature,
            owner=spec.name,
            num_ids=spec.num_embeddings,
            embedding_dim=spec.embedding_dim,
            pooling=spec.pooling,
            lookups=(lookups[spec.name],),
            # A product is combined before it is pooled: then an id without a row counts in a mean.
            combine="product" if spec.pooling == "mean" else "concat",
        )
        for key, (spec, feature) in output_keys(specs).items()
    )
    return LookupPlan(tables=tuple(tables), outputs=outputs, buffers=limits)
