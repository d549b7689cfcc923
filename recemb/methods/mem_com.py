"""MEmCom: a hashed row times a scalar of the id's own.

    e(i) = v_i U[h(i)],   v in R^n,  U in R^{m x D}

Source: Pansare et al., "Learning Compressed Embeddings for On-Device Inference", MLSys 2022,
section 3, the variant without a bias. Departures: the hash mixes, and small tables stay. Ids that
share a row differ in its length.
"""

from collections.abc import Sequence

from recemb.ids.hashing import hash_seed as seed_of
from recemb.tables.blueprint import Blueprint, PlannedMethod, largest
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.method import Budget, IdCounts
from recemb.tables.program import Hash
from recemb.tables.spec import TableSpec, output_keys

_STEPS = 1 << 16


class MEmCom(PlannedMethod):
    """Hashed rows in proportion to ids, and one scalar for every id.

    Tables of width 1, and those where scalars and rows take no less than the table, stay.

    Args:
        exact_below: tables of at most so many ids stay: a few rows and a scalar for each id would
            leave a small field one direction.
        init_std: of the initial vectors; None for the uniform distribution of DLRM. Scalars begin
            at 1.
        hash_seed: of the hash functions.
    """

    def __init__(
        self, *, exact_below: int = 100, init_std: float | None = None, hash_seed: int = 0
    ) -> None:
        self.exact_below = exact_below
        self.init_std = init_std
        self.hash_seed = hash_seed

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the largest blueprint within `budget`, or the smallest there is."""
        return largest(lambda size: self._of(specs, size), budget, specs, most=_STEPS)

    def _of(self, specs: Sequence[TableSpec], size: int) -> Blueprint:
        tables: list[PhysicalTable] = []
        initial: dict[str, Initial] = {}
        outputs = []
        scaled = {}
        for spec in specs:
            rows = max(1, spec.num_embeddings * size // _STEPS)
            taken = rows * spec.embedding_dim + spec.num_embeddings
            scaled[spec.name] = (
                spec.num_embeddings > self.exact_below
                and taken < spec.num_embeddings * spec.embedding_dim
            )
            rows = rows if scaled[spec.name] else spec.num_embeddings
            tables.append(PhysicalTable(name=spec.name, num_rows=rows, width=spec.embedding_dim))
            std = self.init_std
            std = Initial.dlrm(spec.num_embeddings).std if std is None else std
            initial[spec.name] = Initial(distribution="uniform", spread=std * 3**0.5)
            if scaled[spec.name]:
                name = f"{spec.name}_scale"
                tables.append(PhysicalTable(name=name, num_rows=spec.num_embeddings, width=1))
                initial[name] = Initial(distribution="uniform", spread=0.0, mean=1.0)
        sizes = {table.name: table.num_rows for table in tables}
        for key, (spec, feature) in output_keys(specs).items():
            step = Hash(
                seed=seed_of(self.hash_seed, spec.feature_names[0]), num_rows=sizes[spec.name]
            )
            is_scaled = scaled[spec.name]
            scale = VirtualLookup(table=f"{spec.name}_scale") if is_scaled else None
            outputs.append(
                Output(
                    key=key,
                    feature=feature,
                    owner=spec.name,
                    num_ids=spec.num_embeddings,
                    embedding_dim=spec.embedding_dim,
                    pooling=spec.pooling,
                    lookups=(VirtualLookup(table=spec.name, program=(step,) if is_scaled else ()),),
                    combine="weighted" if is_scaled else "concat",
                    importance=scale,
                )
            )
        return Blueprint(
            plan=LookupPlan(tables=tuple(tables), outputs=tuple(outputs)),
            initial=initial,
            parameters={"rows": sizes},
        )
