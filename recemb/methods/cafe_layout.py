"""Where CAFE's rows lie: pools of hot rows, shared rows of each field, tables left whole.

A field is what the same ids address: a feature's vectors and its first-order weights, say. A pool
is the fields whose tables have the same widths; it has one physical table for each of these, all
laid out alike: the hot rows of any of its fields' ids first, then the shared rows of each field. So
an id has one row number, whichever of its tables is read.
"""

from dataclasses import dataclass

import torch

from recemb.tables.initial import Initial
from recemb.tables.listed import Bucketed, Gives, Listed
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.program import Hash, Program, Within
from recemb.tables.spec import TableSpec, output_keys

SLOT_BYTES = 8
"""Of a slot of the sketch beside its key: the score and the row."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """Tables that the same ids address.

    Attributes:
        specs: the tables.
        first_key: the sketch's key of id 0.
        first_row: where its shared rows begin.
        num_shared: how many there are.
        seed: of the hash to them.
        second_seed: of the hash to the rows that marked ids add.
    """

    specs: tuple[TableSpec, ...]
    first_key: int
    first_row: int
    num_shared: int
    seed: int
    second_seed: int

    @property
    def num_ids(self) -> int:
        """Return the number of ids."""
        return self.specs[0].num_embeddings


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Fields that share hot rows, and a sketch.

    Attributes:
        name: names the sketch's buffers and the physical tables.
        fields: the fields.
        widths: of the tables of each field, in order.
        num_hot: hot rows.
        num_second: rows that marked ids add; 0 if there are no marks.
        seed: of the hash of keys.
    """

    name: str
    fields: tuple[Field, ...]
    widths: tuple[int, ...]
    num_hot: int
    num_second: int
    seed: int

    @property
    def key_dtype(self) -> torch.dtype:
        """Return the type of keys: int32 where that holds all, and the mark of unused places."""
        last = self.fields[-1]
        return torch.int32 if last.first_key + last.num_ids < 2**31 - 1 else torch.int64

    @property
    def num_marks(self) -> int:
        """Return how many ids may be marked."""
        return self.num_hot if self.num_second else 0

    @property
    def num_rows(self) -> int:
        """Return the rows of each of its tables, those of marked ids apart."""
        return self.num_hot + sum(field.num_shared for field in self.fields)

    @property
    def row_bytes(self) -> int:
        """Return the bytes of all rows."""
        return 4 * (self.num_rows + self.num_second) * sum(self.widths)

    @property
    def index_bytes(self) -> int:
        """Return the bytes of the lists of hot and of marked ids."""
        return (self.num_hot + self.num_marks) * self.key_dtype.itemsize

    @property
    def sketch_bytes(self) -> int:
        """Return the bytes of the sketch, its threshold and weight included."""
        return self.num_hot * 4 * (self.key_dtype.itemsize + SLOT_BYTES) + 16

    def table(self, place: int) -> str:
        """Return the name of the physical table of the `place`th width."""
        return f"{self.name}.{place}"

    def second(self, place: int) -> str:
        """Return the name of the table of rows that marked ids add."""
        return f"{self.name}.{place}.marked"

    def program(self, field: Field, *, is_served: bool) -> Program:
        """Return the steps to an id's row: its hot one, or a shared one."""
        last = field.first_row + field.num_shared
        hashed = Hash(seed=field.seed, num_rows=last, exact=self.num_hot, first=field.first_row)
        return (self._find(field, is_served, "place"), hashed)

    def second_program(self, field: Field, *, is_served: bool) -> Program:
        """Return the steps to the row that a marked id adds, ABSENT for others."""
        hashed = Hash(seed=field.second_seed, num_rows=1 + self.num_second, exact=1)
        return (self._find(field, is_served, "mark"), hashed, Within(first=1))

    def _find(self, field: Field, is_served: bool, gives: Gives) -> Listed | Bucketed:
        if is_served:
            return Listed(
                keys=f"{self.name}.{'hot' if gives == 'place' else 'marked'}",
                size=self.num_hot if gives == "place" else self.num_marks,
                first=field.first_key,
                gives=gives,
            )
        return Bucketed(
            keys=f"{self.name}.keys",
            rows=f"{self.name}.rows",
            size=self.num_hot,
            seed=self.seed,
            first=field.first_key,
            gives=gives,
        )


@dataclass(frozen=True, kw_only=True)
class CafeLayout:
    """All pools, and the tables that stay whole.

    Attributes:
        specs: all tables.
        pools: the pools.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
    """

    specs: tuple[TableSpec, ...]
    pools: tuple[Pool, ...]
    init_std: float | None

    @property
    def whole(self) -> list[TableSpec]:
        """Return the tables that stay whole."""
        pooled = {s.name for pool in self.pools for f in pool.fields for s in f.specs}
        return [spec for spec in self.specs if spec.name not in pooled]

    @property
    def serve_bytes(self) -> int:
        """Return the bytes that serving needs."""
        pooled = sum(pool.row_bytes + pool.index_bytes for pool in self.pools)
        return pooled + sum(spec.full_bytes for spec in self.whole)

    @property
    def train_bytes(self) -> int:
        """Return the bytes of rows and sketches, without an optimizer's state."""
        pooled = sum(pool.row_bytes + pool.sketch_bytes for pool in self.pools)
        return pooled + sum(spec.full_bytes for spec in self.whole)

    def plan(self, *, is_served: bool) -> LookupPlan:
        """Return the plan that reads the sketches, or the sorted lists of serving."""
        tables = [
            PhysicalTable(name=name, num_rows=num_rows, width=width)
            for pool in self.pools
            for place, width in enumerate(pool.widths)
            for name, num_rows in (
                (pool.table(place), pool.num_rows),
                (pool.second(place), pool.num_second),
            )
            if num_rows
        ]
        tables += [
            PhysicalTable(name=s.name, num_rows=s.num_embeddings, width=s.embedding_dim)
            for s in self.whole
        ]
        lookups: dict[str, tuple[VirtualLookup, ...]] = {
            spec.name: (VirtualLookup(table=spec.name),) for spec in self.whole
        }
        for pool in self.pools:
            for field in pool.fields:
                for place, spec in enumerate(field.specs):
                    lookups[spec.name] = _lookups(pool, field, place, is_served)
        outputs = tuple(
            Output(
                key=key,
                feature=feature,
                owner=spec.name,
                num_ids=spec.num_embeddings,
                embedding_dim=spec.embedding_dim,
                pooling=spec.pooling,
                lookups=lookups[spec.name],
                combine="sum" if len(lookups[spec.name]) > 1 else "concat",
            )
            for key, (spec, feature) in output_keys(self.specs).items()
        )
        return LookupPlan(tables=tuple(tables), outputs=outputs, buffers=self._limits(is_served))

    def initial(self) -> dict[str, Initial]:
        """Return how rows are drawn; those that marked ids add begin at zero."""
        found = {spec.name: self._initial(spec.num_embeddings) for spec in self.whole}
        for pool in self.pools:
            largest = max(field.num_ids for field in pool.fields)
            for place in range(len(pool.widths)):
                found[pool.table(place)] = self._initial(largest)
                found[pool.second(place)] = Initial(distribution="uniform", spread=0.0)
        return found

    def _limits(self, is_served: bool) -> dict[str, int]:
        """Return one more than the largest value that each buffer may hold."""
        limits: dict[str, int] = {}
        for pool in self.pools:
            largest = torch.iinfo(pool.key_dtype).max + 1
            if not is_served:
                limits |= {f"{pool.name}.keys": largest, f"{pool.name}.rows": pool.num_hot}
            else:
                limits[f"{pool.name}.hot"] = largest
                if pool.num_marks:
                    limits[f"{pool.name}.marked"] = largest
        return limits

    def _initial(self, num_ids: int) -> Initial:
        if self.init_std is None:
            return Initial.dlrm(num_ids)
        return Initial(distribution="uniform", spread=self.init_std * 3**0.5)


def _lookups(pool: Pool, field: Field, place: int, is_served: bool) -> tuple[VirtualLookup, ...]:
    first = VirtualLookup(table=pool.table(place), program=pool.program(field, is_served=is_served))
    if not pool.num_second:
        return (first,)
    program = pool.second_program(field, is_served=is_served)
    return (first, VirtualLookup(table=pool.second(place), program=program))
