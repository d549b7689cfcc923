"""Binary-code hashing: the bits of an id, cut into blocks, are rows of small tables.

    e(i) = sum_j E_j[block_j(i)]        (or the blocks' rows side by side)

Source: Yan et al., "Binary Code based Hash Embedding for Web-scale Applications", CIKM 2021 (arXiv
2109.02471), section 2: blocks of t bits, in succession or skipping, are indices; sum pooling fuses
their rows. Distinct ids differ in a block, so that no two have the same rows, and t is the only
thing that decides the size. Departures: the code is the id's own, of as many bits as the ids need,
instead of a hash of the raw value; blocks have tables of their own unless `share_blocks`,
because ids whose blocks are the same in another order would otherwise have the same sum; and t is
smaller by the same number of bits for all tables, give or take one, so that budgets are met.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from recemb.ids.hashing import hash_seed as seed_of
from recemb.methods.hashed import (
    Scope,
    check_scope,
    outputs_of,
    refuse_added_partitions,
    shared_name,
)
from recemb.tables.blueprint import Blueprint, PlannedMethod, largest
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan, PhysicalTable, VirtualLookup
from recemb.tables.method import Budget, IdCounts
from recemb.tables.program import Bits, Hash, Program
from recemb.tables.spec import TableSpec

Strategy = Literal["succession", "skip"]
Fuse = Literal["sum", "concat"]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """How the code of a table's ids is cut.

    Attributes:
        steps: each block's bits.
        num_rows: how many values each block can have.
        widths: of each block's rows.
    """

    steps: tuple[Bits, ...]
    num_rows: tuple[int, ...]
    widths: tuple[int, ...]


class BinaryCodeHash(PlannedMethod):
    """Tables of as many rows as a block has values, for every block of an id's bits.

    A table stays as it is where its blocks need no fewer values than it has.

    Args:
        strategy: "succession": a block is adjacent bits; "skip": bits at equal distances.
        fuse: "sum" (the paper's choice), or "concat": the blocks' rows share the vector's width.
        share_blocks: whether all blocks of a table index the same rows; for "sum" alone. Ids whose
            blocks agree in another order then have one vector.
        exact_below: tables of at most so many ids are not compressed.
        scope: "per_feature", or "multiplexed": the values of all blocks of all tables are hashed
            into the same rows, as many as before; for "concat" alone.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions of "multiplexed".

    Raises:
        ValueError: on an unknown word, or a combination that is said to be impossible above.
    """

    def __init__(
        self,
        *,
        strategy: Strategy = "succession",
        fuse: Fuse = "sum",
        share_blocks: bool = False,
        exact_below: int = 100,
        scope: Scope = "per_feature",
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        if strategy not in get_args(Strategy) or fuse not in get_args(Fuse):
            raise ValueError(
                f"BinaryCodeHash: strategy must be succession or skip and fuse sum or concat, got "
                f"'{strategy}' and '{fuse}'"
            )
        check_scope(scope)
        if share_blocks and fuse == "concat":
            raise ValueError(
                "BinaryCodeHash: share_blocks needs rows of one width, which fuse=concat does not "
                "have; choose fuse=sum or share_blocks=false"
            )
        if scope == "multiplexed":
            refuse_added_partitions("BinaryCodeHash", "fuse", fuse)
        self.strategy: Strategy = strategy
        self.fuse: Fuse = fuse
        self.share_blocks = share_blocks
        self.exact_below = exact_below
        self.scope = scope
        self.init_std = init_std
        self.hash_seed = hash_seed

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the blueprint of the longest blocks within `budget`, or that of the shortest."""
        cuts = {s.name: self._cuts(s) for s in specs if s.num_embeddings > self.exact_below}
        order = sorted(cuts, key=lambda name: len(cuts[name]))
        most = max((len(c) for c in cuts.values()), default=1) - 1

        def make(size: int) -> Blueprint:
            # Each size gives one table one bit more, the small tables first.
            rounds, extra = divmod(size - 1, max(1, len(order)))
            chosen = {}
            for index, name in enumerate(order):
                removed = most - rounds - (index < extra)
                chosen[name] = cuts[name][max(0, len(cuts[name]) - 1 - removed)]
            return self._of(specs, chosen)

        return largest(make, budget, specs, most=most * len(order) + 1)

    def _cuts(self, spec: TableSpec) -> list[Blocks | None]:
        """Return the best cut for blocks of at least 1, 2, .. bits; None leaves the table whole.

        A longer block may take fewer values, where it makes a short rest disappear.
        """
        num_bits = (spec.num_embeddings - 1).bit_length()
        best, least = None, spec.num_embeddings * spec.embedding_dim
        found: list[Blocks | None] = [None]
        for length in range(num_bits - 1, 0, -1):
            blocks = self._cut(spec, num_bits, length)
            if blocks is not None and self._num_values(blocks) < least:
                best, least = blocks, self._num_values(blocks)
            found.append(best)
        return found[::-1]

    def _cut(self, spec: TableSpec, num_bits: int, length: int) -> Blocks | None:
        """Return the cut into blocks of `length` bits; None if the vector is too narrow."""
        num = -(-num_bits // length)
        order = list(range(num_bits))
        if self.strategy == "skip":
            order = [p for first in range(num) for p in range(first, num_bits, num)]
        width = spec.embedding_dim
        if self.fuse == "concat" and num > width:
            return None
        steps = tuple(Bits(places=tuple(order[j * length :][:length])) for j in range(num))
        limits = [step.limit(spec.num_embeddings, {}) for step in steps]
        return Blocks(
            steps=steps,
            num_rows=tuple(limit for limit in limits if limit is not None),
            widths=tuple(
                width // num + (j < width % num) if self.fuse == "concat" else width
                for j in range(num)
            ),
        )

    def _num_values(self, blocks: Blocks) -> int:
        if self.share_blocks:
            return max(blocks.num_rows) * blocks.widths[0]
        return sum(n * w for n, w in zip(blocks.num_rows, blocks.widths, strict=True))

    def _of(self, specs: Sequence[TableSpec], chosen: dict[str, Blocks | None]) -> Blueprint:
        sizes: dict[str, tuple[int, int]] = {}
        initial: dict[str, Initial] = {}
        # Rows that several tables share are drawn for the largest of them, which comes last.
        for spec in sorted(specs, key=lambda s: s.num_embeddings):
            blocks = chosen.get(spec.name)
            if blocks is None:
                sizes[spec.name] = spec.num_embeddings, spec.embedding_dim
                initial[spec.name] = self._initial(spec)
                continue
            for j, (num, width) in enumerate(zip(blocks.num_rows, blocks.widths, strict=True)):
                name = self._table_name(spec, j, width)
                sizes[name] = self._grown(sizes.get(name, (0, width))[0], num), width
                initial[name] = self._initial(spec, num_blocks=len(blocks.steps))
        lookups = {s.name: self._lookups(s, chosen.get(s.name), sizes) for s in specs}
        tables = tuple(
            PhysicalTable(name=name, num_rows=num, width=width)
            for name, (num, width) in sizes.items()
        )
        bits = {n: [len(s.places) for s in b.steps] for n, b in chosen.items() if b is not None}
        return Blueprint(
            plan=LookupPlan(tables=tables, outputs=outputs_of(specs, lookups, combine=self.fuse)),
            initial=initial,
            parameters={"rows": {t.name: t.num_rows for t in tables}, "block_bits": bits},
        )

    def _lookups(
        self, spec: TableSpec, blocks: Blocks | None, sizes: dict[str, tuple[int, int]]
    ) -> tuple[VirtualLookup, ...]:
        if blocks is None:
            return (VirtualLookup(table=spec.name),)
        found = []
        for j, (step, width) in enumerate(zip(blocks.steps, blocks.widths, strict=True)):
            name = self._table_name(spec, j, width)
            program: Program = (step,)
            if self.scope == "multiplexed":
                seed = seed_of(self.hash_seed, spec.feature_names[0], j)
                program = (step, Hash(seed=seed, num_rows=sizes[name][0]))
            found.append(VirtualLookup(table=name, program=program))
        return tuple(found)

    def _table_name(self, spec: TableSpec, j: int, width: int) -> str:
        if self.scope == "multiplexed":
            return shared_name(spec, width)
        return spec.name if self.share_blocks else f"{spec.name}_block{j}"

    def _grown(self, before: int, num: int) -> int:
        return before + num if self.scope == "multiplexed" else max(before, num)

    def _initial(self, spec: TableSpec, *, num_blocks: int = 1) -> Initial:
        std = self.init_std
        std = Initial.dlrm(spec.num_embeddings).std if std is None else std
        summands = num_blocks if self.fuse == "sum" else 1
        return Initial(distribution="uniform", spread=std * math.sqrt(3 / summands))
