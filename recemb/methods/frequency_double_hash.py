"""Frequency-based double hashing: frequent ids have rows of their own, rare ones sum hashed rows.

    e(i) = H[rank(i)] if rank(i) < head, else E[h_1(i)] + E[h_2(i)]

Source: Zhang et al., "Model Size Reduction Using Frequency Based Double Hashing for Recommender
Systems", RecSys 2020 (arXiv 2007.14523). Departures: how the rows are divided between H and E is a
setting, and the rank of every id, 4 bytes, counts against the budget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from recemb.ids.hashing import hash_seed as seed_of
from recemb.methods.adapt_emb import frequency_ranks
from recemb.methods.hashed import Scope, check_scope, outputs_of, shared_name
from recemb.tables.blueprint import Blueprint, PlannedMethod, largest
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan, PhysicalTable, VirtualLookup
from recemb.tables.method import Budget, IdCounts
from recemb.tables.program import Hash, Program, Remap, Within
from recemb.tables.spec import TableSpec

_STEPS = 1 << 20
"""The rows of a compressed table are one in so many steps of its ids."""


@dataclass
class _Draft:
    """A blueprint in the making; `shared` counts the rows of E by table."""

    tables: list[PhysicalTable] = field(default_factory=list)
    initial: dict[str, Initial] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    lookups: dict[str, tuple[VirtualLookup, ...]] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)


class FrequencyDoubleHash(PlannedMethod):
    """Rows in proportion to ids; `head_share` of them belong to one frequent id each.

    Frequencies are those of the training split; without statistics the ids themselves are taken to
    be ranks. A table stays as it is where ranks and rows take no less than the table.

    Args:
        head_share: of a table's rows.
        lookups: hashed rows that a rare id sums.
        exact_below: tables of at most so many ids are not compressed.
        scope: "per_feature", or "multiplexed" for one E of all features; H is always per table.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions.

    Raises:
        ValueError: if `head_share` is not in [0, 1), `lookups` below 1, or `scope` unknown.
    """

    def __init__(
        self,
        *,
        head_share: float = 0.5,
        lookups: int = 2,
        exact_below: int = 100,
        scope: Scope = "per_feature",
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        if not 0 <= head_share < 1 or lookups < 1:
            raise ValueError(
                f"FrequencyDoubleHash: head_share must be in [0, 1) and lookups at least 1, got "
                f"{head_share} and {lookups}"
            )
        check_scope(scope)
        self.head_share = head_share
        self.lookups = lookups
        self.exact_below = exact_below
        self.scope = scope
        self.init_std = init_std
        self.hash_seed = hash_seed

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the largest blueprint within `budget`, or the smallest there is."""
        ranks = {
            spec.name: frequency_ranks(spec, stats)
            for spec in specs
            if spec.num_embeddings > self.exact_below
        }
        return largest(lambda size: self._of(specs, ranks, size), budget, specs, most=_STEPS)

    def _of(self, specs: Sequence[TableSpec], ranks: dict[str, Tensor], size: int) -> Blueprint:
        draft = _Draft()
        members: dict[str, list[TableSpec]] = {}
        for spec in specs:
            rows = max(1, spec.num_embeddings * size // _STEPS)
            width, num_ids = spec.embedding_dim, spec.num_embeddings
            if spec.name in ranks and 4 * width * (num_ids - rows) > 4 * num_ids:
                name = self._shared_name(spec)
                members.setdefault(name, []).append(spec)
                draft.heads[spec.name] = min(int(rows * self.head_share), rows - 1)
                draft.shared[name] = draft.shared.get(name, 0) + rows - draft.heads[spec.name]
                buffer = f"{spec.name}_rank"
                draft.buffers[buffer], draft.limits[buffer] = ranks[spec.name], num_ids
            else:
                draft.tables.append(PhysicalTable(name=spec.name, num_rows=num_ids, width=width))
                draft.initial[spec.name] = self._initial(spec)
                draft.lookups[spec.name] = (VirtualLookup(table=spec.name),)
        for name, sharing in members.items():
            self._compress(sharing, name, draft)
        return self._blueprint(specs, draft)

    def _compress(self, members: Sequence[TableSpec], name: str, draft: _Draft) -> None:
        """Add the tables of `members`, whose rare ids share the rows of the table `name`."""
        largest_table = max(members, key=lambda spec: spec.num_embeddings)
        width = largest_table.embedding_dim
        table = PhysicalTable(name=name, num_rows=draft.shared[name], width=width)
        draft.tables.append(table)
        draft.initial[name] = self._initial(largest_table, summands=self.lookups)
        for spec in members:
            rank = Remap(buffer=f"{spec.name}_rank", is_total=True)
            head = draft.heads[spec.name]
            found = []
            if head:
                frequent = PhysicalTable(name=f"{spec.name}_head", num_rows=head, width=width)
                draft.tables.append(frequent)
                draft.initial[frequent.name] = self._initial(spec)
                found.append(VirtualLookup(table=frequent.name, program=(rank, Within(end=head))))
            for j in range(self.lookups):
                seed = seed_of(self.hash_seed, spec.feature_names[0], j)
                program: Program = (rank, Hash(seed=seed, num_rows=table.num_rows))
                if head:
                    # Ids below `exact` keep their number, so that they can be left out afterwards.
                    step = Hash(seed=seed, num_rows=head + table.num_rows, exact=head)
                    program = (rank, step, Within(first=head))
                found.append(VirtualLookup(table=name, program=program))
            draft.lookups[spec.name] = tuple(found)

    def _blueprint(self, specs: Sequence[TableSpec], draft: _Draft) -> Blueprint:
        outputs = outputs_of(specs, draft.lookups, combine="sum")
        return Blueprint(
            plan=LookupPlan(tables=tuple(draft.tables), outputs=outputs, buffers=draft.limits),
            buffers=draft.buffers,
            initial=draft.initial,
            parameters={
                "rows": {table.name: table.num_rows for table in draft.tables},
                "heads": dict(draft.heads),
            },
        )

    def _shared_name(self, spec: TableSpec) -> str:
        is_own = self.scope == "per_feature"
        return spec.name if is_own else shared_name(spec, spec.embedding_dim)

    def _initial(self, spec: TableSpec, *, summands: int = 1) -> Initial:
        std = self.init_std
        std = Initial.dlrm(spec.num_embeddings).std if std is None else std
        return Initial(distribution="uniform", spread=std * math.sqrt(3 / summands))
