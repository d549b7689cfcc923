"""AdaptEmb: frequent ids have rows of their own, rare ones share the rest.

    e(i) = E[rank(i)] if rank(i) < head, else E[head + h(i)]

Source: DeepRec's adaptive embedding (Alibaba), as described in the VLDB 2024 study of Zhang et al.
Departures: the tail is hashed by a mixing hash (hashing=modulo is the study's), and the remap of
every id counts against the budget.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from recemb.ids.hashing import hash_seed
from recemb.methods.hashed import HashRule
from recemb.tables.blueprint import Blueprint, PlannedMethod, largest
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.method import Budget, IdCounts
from recemb.tables.program import Hash, Program, Remap
from recemb.tables.spec import TableSpec, output_keys

_STEPS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class RankedRows:
    """Tables whose ids are ranked by frequency; the first ranks have a row each.

    Frequencies are those of the training split; ids of equal frequency are ordered by id. Without
    frequencies (no statistics for the feature) the ids themselves are taken to be ranks. The ranks
    are a buffer of 4 bytes an id, which counts against the budget; a table stays as it is where
    that is more than is saved.

    Attributes:
        head: how many of a table's rows belong to one id each; at least one is shared.
        exact_below: tables of at most so many ids are not compressed.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions.
        hashing: "mixed", or "modulo": the tail's ids, in their order, take its rows in turn. The
            buffer then holds rows instead of ranks.

    Raises:
        ValueError: if `hashing` is unknown.
    """

    head: Callable[[int], int]
    exact_below: int
    init_std: float | None
    hash_seed: int
    hashing: HashRule = "mixed"

    def __post_init__(self) -> None:
        if self.hashing not in get_args(HashRule):
            raise ValueError(f"hashing must be mixed or modulo, got '{self.hashing}'")

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the largest blueprint within `budget`, or the smallest there is."""
        ranks = {
            spec.name: frequency_ranks(spec, stats)
            for spec in specs
            if spec.num_embeddings > self.exact_below
        }
        made = largest(lambda size: self._of(specs, ranks, size), budget, specs, most=_STEPS)
        if self.hashing == "mixed":
            return made
        rows = {
            f"{name}_rank": self._rows_in_turn(rank, made.parameters["rows"][name])
            for name, rank in ranks.items()
            if f"{name}_rank" in made.buffers
        }
        return replace(made, buffers=rows)

    def _of(self, specs: Sequence[TableSpec], ranks: dict[str, Tensor], size: int) -> Blueprint:
        tables, initial, buffers, limits = [], {}, {}, {}
        programs: dict[str, Program] = {}
        for spec in specs:
            num_ids = spec.num_embeddings
            rows = max(1, num_ids * size // _STEPS)
            programs[spec.name] = ()
            saved = 4 * spec.embedding_dim * (num_ids - rows)
            if spec.name in ranks and saved > 4 * num_ids:
                name = f"{spec.name}_rank"
                buffers[name], limits[name] = ranks[spec.name], num_ids
                seed = hash_seed(self.hash_seed, spec.feature_names[0])
                exact = min(self.head(rows), rows - 1)
                programs[spec.name] = (Remap(buffer=name, is_total=True),)
                if self.hashing == "mixed":
                    programs[spec.name] += (Hash(seed=seed, num_rows=rows, exact=exact),)
                else:
                    limits[name] = rows
                num_ids = rows
            tables.append(PhysicalTable(name=spec.name, num_rows=num_ids, width=spec.embedding_dim))
            std = self.init_std
            std = Initial.dlrm(spec.num_embeddings).std if std is None else std
            initial[spec.name] = Initial(distribution="uniform", spread=std * 3**0.5)
        outputs = tuple(
            Output(
                key=key,
                feature=feature,
                owner=spec.name,
                num_ids=spec.num_embeddings,
                embedding_dim=spec.embedding_dim,
                pooling=spec.pooling,
                lookups=(VirtualLookup(table=spec.name, program=programs[spec.name]),),
            )
            for key, (spec, feature) in output_keys(specs).items()
        )
        return Blueprint(
            plan=LookupPlan(tables=tuple(tables), outputs=outputs, buffers=limits),
            buffers=buffers,
            initial=initial,
            parameters={"rows": {t.name: t.num_rows for t in tables}},
        )

    def _rows_in_turn(self, ranks: Tensor, num_rows: int) -> Tensor:
        """Return the row (N,) int32 of each id, given its rank (N,)."""
        head = min(self.head(num_rows), num_rows - 1)
        is_tail = ranks >= head
        turns = (torch.cumsum(is_tail, 0) - 1) % (num_rows - head)
        return torch.where(is_tail, head + turns, ranks.long()).int()


class AdaptEmb(PlannedMethod):
    """Rows in proportion to ids; `head_share` of them belong to one frequent id each.

    Args:
        head_share: of a table's rows.
        hashing: of the tail: "mixed", or "modulo" as in the study.
        exact_below: tables of at most so many ids are not compressed.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions.

    Raises:
        ValueError: if `head_share` is not in [0, 1), or `hashing` unknown.
    """

    def __init__(
        self,
        *,
        head_share: float = 0.5,
        hashing: HashRule = "mixed",
        exact_below: int = 100,
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        if not 0 <= head_share < 1:
            raise ValueError(f"AdaptEmb: head_share must be in [0, 1), got {head_share}")
        self.rows = RankedRows(
            head=lambda rows: int(rows * head_share),
            exact_below=exact_below,
            init_std=init_std,
            hash_seed=hash_seed,
            hashing=hashing,
        )

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the largest blueprint within `budget`, or the smallest there is."""
        return self.rows.blueprint(specs, stats, budget)


def frequency_ranks(spec: TableSpec, stats: IdCounts) -> Tensor:
    """Return the rank of each id (num_embeddings,) int32, the most frequent first.

    Ids of equal frequency are ordered by id; without statistics of any feature all are equal.

    Args:
        spec: the table; the counts of all its features are added.
        stats: how often the training split has each id.

    Raises:
        ValueError: if there are counts, but none of this table's features, or too many or few.
    """
    counts = [stats[f] for f in spec.feature_names if f in stats]
    if stats and not counts:
        raise ValueError(
            f"table '{spec.name}': there are counts of {sorted(stats)}, and none of its features "
            f"{list(spec.feature_names)}; give none at all if ids are in order of frequency"
        )
    for its in counts:
        if its.numel() != spec.num_embeddings:
            raise ValueError(
                f"table '{spec.name}': it has {spec.num_embeddings} ids and {its.numel()} counts"
            )
    if not counts:
        return torch.arange(spec.num_embeddings, dtype=torch.int32)
    total = torch.stack(list(counts)).sum(dim=0)
    order = torch.sort(total, descending=True, stable=True).indices
    ranks = torch.empty(spec.num_embeddings, dtype=torch.int32)
    ranks[order] = torch.arange(spec.num_embeddings, dtype=torch.int32)
    return ranks
