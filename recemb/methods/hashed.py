"""What the hashing methods share: several hashed rows per id, combined into its vector.

A method of this family is a choice of: how many rows an id has, how wide they are, how they are
combined, and whether each feature has a table of its own or all share one (feature multiplexing;
Coleman et al., "Unified Embedding", NeurIPS 2023).

The rows are drawn so that the combined vector has the standard deviation s that is asked for: with
k rows, s for a concatenation, s / sqrt(k) for a sum, s sqrt(k) for a mean, and s sqrt(3 / k) for a
sum with weights that are drawn uniformly from +-1.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from recemb.ids.hashing import hash_seed
from recemb.tables.blueprint import Blueprint, largest
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import Combine, LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.method import Budget
from recemb.tables.program import Digit, Hash, Offset, Program
from recemb.tables.spec import TableSpec, output_keys

Scope = Literal["per_feature", "multiplexed"]
HashRule = Literal["mixed", "modulo"]

_STEPS = 1 << 20
"""The size of all tables is one in so many steps of their full size."""


@dataclass(frozen=True, kw_only=True)
class HashedRows:
    """How a method of the family stores an id.

    Attributes:
        num_lookups: rows of an id, given its table.
        row_width: width of a row, given the table's embedding_dim.
        combine: how rows become a vector.
        scope: whether each table is hashed into rows of its own, or all tables of one row width
            into the same.
        exact_below: tables of at most so many ids keep a row (for each lookup) of its own for
            every id.
        exact_if_fits: whether nothing is hashed where there are as many rows as ids.
        init_std: standard deviation of the initial vectors; None for that of `Initial.dlrm`.
        num_tables: into how many tables of equal size shared rows are dealt, lookup by lookup in
            turn; for "multiplexed" alone.
        seed: of the hash functions.
        importance_rows: rows of importance weights over the ids of a table, for "weighted".
        hashing: "mixed" for a seeded hash that mixes; "modulo" for the remainder of the id, for one
            lookup per id in tables of their own: a remainder cannot be salted.

    Raises:
        ValueError: on an unknown word, or for "modulo" where tables share rows.
    """

    num_lookups: Callable[[TableSpec], int]
    row_width: Callable[[int], int]
    combine: Combine = "concat"
    scope: Scope = "per_feature"
    exact_below: int = 0
    exact_if_fits: bool = True
    init_std: float | None = None
    num_tables: int = 1
    seed: int = 0
    importance_rows: float = 0.0
    hashing: HashRule = "mixed"

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if self.hashing not in get_args(HashRule):
            raise ValueError(f"hashing must be mixed or modulo, got '{self.hashing}'")
        if self.hashing == "modulo" and self.scope == "multiplexed":
            raise ValueError(
                "hashing=modulo cannot be multiplexed: id i of every feature would read the same "
                "row, for a remainder has no salt; choose hashing=mixed or scope=per_feature"
            )

    def blueprint(self, specs: Sequence[TableSpec], budget: Budget | None) -> Blueprint:
        """Return the largest blueprint within `budget`, or the smallest there is.

        Tables that take any id share what the others leave, in proportion to their widths.

        Raises:
            ValueError: if a table takes any id, and there is no budget in bytes.
        """
        full = {spec.name: spec.full_bytes for spec in specs}
        if any(spec.num_ids is None for spec in specs):
            full = _sizes_without_bound(specs, budget)
        return largest(lambda size: self._of_size(specs, full, size), budget, specs, most=_STEPS)

    def _of_size(self, specs: Sequence[TableSpec], full: Mapping[str, int], size: int) -> Blueprint:
        """Return the blueprint whose hashed rows have size / _STEPS of the `full` bytes."""
        tables: list[PhysicalTable] = []
        initial: dict[str, Initial] = {}
        lookups: dict[str, list[VirtualLookup]] = {}
        for members in self._shares(specs):
            width = self.row_width(members[0].embedding_dim)
            wanted = sum(full[spec.name] for spec in members) * size // (4 * width * _STEPS)
            made = self._lay_out(members, width, max(1, wanted), lookups)
            tables += made
            rule = self._initial(members, sum(table.num_rows for table in made))
            initial |= dict.fromkeys((table.name for table in made), rule)
        importance: dict[str, VirtualLookup] = {}
        if self.combine == "weighted":
            for spec in specs:
                weights = self._importance(spec, size)
                tables.append(weights)
                initial[weights.name] = Initial(distribution="uniform", spread=1.0)
                importance[spec.name] = VirtualLookup(
                    table=weights.name, program=self._importance_program(spec, weights.num_rows)
                )
        outputs = []
        for key, (spec, feature) in output_keys(specs).items():
            its = lookups[spec.name]
            width = self.row_width(spec.embedding_dim)
            outputs.append(
                Output(
                    key=key,
                    feature=feature,
                    owner=spec.name,
                    num_ids=spec.num_ids,
                    embedding_dim=width * len(its) if self.combine == "concat" else width,
                    pooling=spec.pooling,
                    lookups=tuple(its),
                    combine=self.combine,
                    importance=importance.get(spec.name),
                )
            )
        return Blueprint(
            plan=LookupPlan(tables=tuple(tables), outputs=tuple(outputs)),
            initial=initial,
            parameters={
                "rows": {t.name: t.num_rows for t in tables},
                "lookups": {spec.name: len(lookups[spec.name]) for spec in specs},
            },
        )

    def _shares(self, specs: Sequence[TableSpec]) -> list[list[TableSpec]]:
        """Return the tables that share a physical one."""
        if self.scope == "per_feature":
            return [[spec] for spec in specs]
        groups: dict[tuple[object, ...], list[TableSpec]] = {}
        for spec in specs:
            key: tuple[object, ...] = (self.row_width(spec.embedding_dim), spec.pooling == "none")
            if self.combine in ("sum", "mean") and spec.num_embeddings <= self.exact_below:
                # A row that stands alone is not drawn like those that are summed.
                key = (spec.name,)
            groups.setdefault(key, []).append(spec)
        return list(groups.values())

    def _lay_out(
        self,
        members: Sequence[TableSpec],
        width: int,
        wanted: int,
        lookups: dict[str, list[VirtualLookup]],
    ) -> list[PhysicalTable]:
        """Fill in the lookups of tables that share `wanted` rows; return the physical tables."""
        names = self._names(members, width)
        exact = [s for s in members if s.num_embeddings <= self.exact_below]
        hashed = [s for s in members if s.num_embeddings > self.exact_below]
        needed = sum(s.num_embeddings * self.num_lookups(s) for s in hashed)
        if self.exact_if_fits and needed and wanted - self._exact_rows(exact) >= needed:
            # As many rows as ids: nothing has to be shared.
            exact, hashed = list(members), []
        turns = itertools.cycle(names)
        firsts = dict.fromkeys(names, 0)
        for spec in exact:
            lookups[spec.name] = []
            for _ in range(self.num_lookups(spec)):
                name = next(turns)
                program: Program = (Offset(first=firsts[name]),) if firsts[name] else ()
                lookups[spec.name].append(VirtualLookup(table=name, program=program))
                firsts[name] += spec.num_embeddings
        sizes = {name: max(1, wanted // len(names) - firsts[name]) for name in names}
        for spec in hashed:
            lookups[spec.name] = []
            for j in range(self.num_lookups(spec)):
                name = next(turns)
                program = self._hash(spec, j, sizes[name], firsts[name])
                lookups[spec.name].append(VirtualLookup(table=name, program=program))
        return [
            PhysicalTable(
                name=name,
                num_rows=max(1, firsts[name] + (sizes[name] if hashed else 0)),
                width=width,
            )
            for name in names
        ]

    def _names(self, members: Sequence[TableSpec], width: int) -> list[str]:
        """Return the names of the physical tables that the tables share."""
        if len(members) == 1 and (self.scope == "per_feature" or self.num_tables == 1):
            return [members[0].name]
        name = shared_name(members[0], width)
        if self.num_tables == 1:
            return [name]
        return [f"{name}_{i}" for i in range(self.num_tables)]

    def _exact_rows(self, exact: Sequence[TableSpec]) -> int:
        return sum(s.num_embeddings * self.num_lookups(s) for s in exact)

    def _hash(self, spec: TableSpec, j: int, num_rows: int, first: int) -> Program:
        # Features that share a table share its ids, so they share their hash: that of the first.
        seed = hash_seed(self.seed, spec.feature_names[0], j)
        if self.hashing == "modulo":
            assert j == 0
            return (Digit(modulus=num_rows),)
        step = Hash(seed=seed, num_rows=num_rows)
        return (step, Offset(first=first)) if first else (step,)

    def _importance(self, spec: TableSpec, size: int) -> PhysicalTable:
        num_rows = max(1, math.floor(spec.num_embeddings * self.importance_rows * size / _STEPS))
        return PhysicalTable(
            name=f"{spec.name}_importance",
            num_rows=min(num_rows, spec.num_embeddings),
            width=self.num_lookups(spec),
        )

    def _importance_program(self, spec: TableSpec, num_rows: int) -> Program:
        if num_rows >= spec.num_embeddings:
            return ()
        seed = hash_seed(self.seed, spec.feature_names[0], self.num_lookups(spec))
        return (Hash(seed=seed, num_rows=num_rows),)

    def _initial(self, members: Sequence[TableSpec], num_rows: int) -> Initial:
        std = self.init_std
        if std is None:
            std = Initial.dlrm(max(spec.num_ids or num_rows for spec in members)).std
        k = self.num_lookups(members[0])
        factor = {
            "concat": 1.0,
            "sum": k**-0.5,
            "mean": k**0.5,
            "weighted": (3 / k) ** 0.5,
        }[self.combine]
        return Initial(distribution="uniform", spread=std * factor * 3**0.5)


def _sizes_without_bound(specs: Sequence[TableSpec], budget: Budget | None) -> dict[str, int]:
    """Return bytes for each table in proportion to which they get rows.

    A table with a bound counts with its full size, all of those together with half of the budget at
    most; the others share the rest by their widths.

    Raises:
        ValueError: if there is no budget.
    """
    unbounded = [spec for spec in specs if spec.num_ids is None]
    if budget is None:
        raise ValueError(
            f"tables {[spec.name for spec in unbounded]} take any id, so they have no full size; "
            "give the size as Budget(num_bytes=..)"
        )
    allowed, bounded = budget.allowed_bytes(specs), sum(spec.full_bytes for spec in specs)
    share = min(1.0, allowed / 2 / bounded) if bounded else 1.0
    rest, width = allowed - share * bounded, sum(spec.embedding_dim for spec in unbounded)
    return {
        spec.name: int(
            rest * spec.embedding_dim / width if spec.num_ids is None else share * spec.full_bytes
        )
        for spec in specs
    }


def outputs_of(
    specs: Sequence[TableSpec],
    lookups: Mapping[str, tuple[VirtualLookup, ...]],
    *,
    combine: Combine,
) -> tuple[Output, ...]:
    """Return the outputs whose vectors are as wide as embedding_dim says.

    Args:
        specs: the tables.
        lookups: those of each table, by its name.
        combine: how several lookups become a vector.
    """
    return tuple(
        Output(
            key=key,
            feature=feature,
            owner=spec.name,
            num_ids=spec.num_ids,
            embedding_dim=spec.embedding_dim,
            pooling=spec.pooling,
            lookups=lookups[spec.name],
            combine=combine if len(lookups[spec.name]) > 1 else "concat",
        )
        for key, (spec, feature) in output_keys(specs).items()
    )


def shared_name(spec: TableSpec, width: int) -> str:
    """Return the name of the table of `width` that `spec` shares with others.

    Sequences are looked up by themselves, so that they share rows among themselves.
    """
    return f"shared_{width}" + ("_sequence" if spec.pooling == "none" else "")


def check_scope(scope: Scope) -> None:
    """Check the word.

    Raises:
        ValueError: if it is unknown.
    """
    if scope not in get_args(Scope):
        raise ValueError(f"scope must be per_feature or multiplexed, got '{scope}'")


def refuse_added_partitions(owner: str, setting: str, value: str) -> None:
    """Check that the rows of different partitions of an id are not added, which share a table.

    The quotient of one id and the remainder of another that share a row would both be added to a
    vector before the network has any weights between them: they would share one gradient, and be
    merged for good, which is what partitions with tables of their own exclude. Rows side by side,
    or multiplied, are told apart. Source: Coleman et al., "Unified Embedding", NeurIPS 2023,
    section 4 (only rows that are read through different weights can be told apart).

    Raises:
        ValueError: if `value` is "sum".
    """
    if value == "sum":
        raise ValueError(
            f"{owner}: {setting}=sum cannot be multiplexed: embeddings that are added share one "
            "gradient, so that parts of an id that share a row are merged for good; choose "
            f"another {setting}, or scope=per_feature"
        )
