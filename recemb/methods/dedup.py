"""Dedup: blocks of rows that are alike after training are stored once.

    e(i) = E[map[i // R] R + i mod R]

Full tables are trained; all tables of one width lie one after the other and are cut into blocks of
R rows; blocks that are alike (`recemb.methods.deduplication`) share one; what is left is trained
on, with a new optimizer.

Source: Zhou et al., "Serving Deep Learning Models with Deduplication from Relational Databases",
VLDB 2022, as the VLDB 2024 study of Zhang et al. adapts it to embeddings. Departures: a budget is
kept, by merging the closest blocks until it is; the published code stops at a fixed tolerance,
which is what happens here without a budget. Blocks of small tables are smaller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from recemb.methods.deduplication import Similarity, merge_alike, merge_closest
from recemb.methods.pruned import allowed_bytes
from recemb.tables.blocked import Blocked
from recemb.tables.blueprint import Blueprint
from recemb.tables.full import full_tables
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.method import Budget, Context, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.program import Offset, Program
from recemb.tables.recipe import Recipe
from recemb.tables.spec import TableSpec, output_keys, refuse_any_id
from recemb.tables.storage import Storage
from recemb.tables.tables import Tables

_LARGEST_BLOCK = 10_000
_NUM_BLOCKS = 1_000
_MAP_SHARE = 10
"""A map of blocks takes at most one part of so many of a budget, where blocks can be that large."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The tables of one width, one after the other, in blocks.

    Attributes:
        specs: the tables.
        width: of their rows.
        block_rows: R.
        num_kept: blocks that are stored, at most `num_blocks`.
    """

    specs: tuple[TableSpec, ...]
    width: int
    block_rows: int
    num_kept: int

    @property
    def num_blocks(self) -> int:
        """Return the number of blocks, the last of which may be padded with zeros."""
        return -(-sum(spec.num_embeddings for spec in self.specs) // self.block_rows)

    @property
    def is_plain(self) -> bool:
        """Return whether no block is shared, so that tables stay as they are."""
        return self.num_kept == self.num_blocks

    @property
    def name(self) -> str:
        """Return the name of the blocks among tables, and of their map among buffers."""
        return f"blocks_{self.width}"

    @property
    def map_dtype(self) -> torch.dtype:
        """Return the type of the map: of two bytes where they suffice, however many are kept."""
        return torch.int16 if self.num_blocks <= 2**15 else torch.int32

    @property
    def num_bytes(self) -> int:
        """Return the bytes of blocks and map, or of the tables if they stay."""
        if self.is_plain:
            return sum(spec.full_bytes for spec in self.specs)
        return self.num_kept * self.block_bytes + self.num_blocks * self.map_dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Return the bytes of a block."""
        return 4 * self.block_rows * self.width

    def cut(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the tables' rows as blocks (B, R width)."""
        rows = torch.cat([weights[spec.name].detach() for spec in self.specs])
        padding = self.num_blocks * self.block_rows - rows.shape[0]
        rows = torch.cat([rows, rows.new_zeros(padding, self.width)])
        return rows.view(self.num_blocks, -1)

    def programs(self) -> dict[str, Program]:
        """Return the steps from an id of each table to its row among the blocks."""
        found: dict[str, Program] = {}
        first = 0
        for spec in self.specs:
            step = Blocked(buffer=self.name, block_rows=self.block_rows)
            found[spec.name] = (Offset(first=first), step) if first else (step,)
            first += spec.num_embeddings
        return found


class Dedup(Method):
    """Training, merging of blocks, training of what is left.

    Each width's blocks keep the same share of a budget as of the full bytes, and as many blocks as
    that holds; it is always reached, above one block and the map of blocks. What is merged to reach
    it may be less alike than `share` and `tolerance` ask. Training holds the full tables.

    Args:
        block_rows: R; null for a thousandth of all rows, at most 10,000, and for a budget so many
            that the map takes no more than a tenth of it.
        share: of the elements of two blocks that must be near.
        tolerance: how near, where there is no budget.
        candidates: blocks that a block is compared with in full, in each round.
        init_std: draw the initial weights from N(0, init_std); None draws them uniformly from
            +-1/sqrt(num_embeddings).
        seed: of the random projection that finds candidates.

    Raises:
        ValueError: on a number outside its range.
    """

    stages = ("train", "finetune")

    def __init__(
        self,
        *,
        block_rows: int | None = None,
        share: float = 0.7,
        tolerance: float = 0.01,
        candidates: int = 8,
        init_std: float | None = None,
        seed: int = 0,
    ) -> None:
        if (block_rows is not None and block_rows < 1) or tolerance < 0:
            raise ValueError(
                "Dedup: block_rows must be at least 1 or null and tolerance not negative, got "
                f"{block_rows} and {tolerance}"
            )
        self.block_rows = block_rows
        self.similarity = Similarity(share=share, candidates=candidates, seed=seed)
        self.tolerance = tolerance
        self.init_std = init_std

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return the most blocks that the budget holds; without one all of them, at most."""
        refuse_any_id(specs, type(self).__name__)
        groups = self._groups(specs, budget)
        serve = {"weights": 0, "buffers": 0}
        for group in groups:
            weights = group.num_bytes if group.is_plain else group.num_kept * group.block_bytes
            serve["weights"] += weights
            serve["buffers"] += group.num_bytes - weights
        full = sum(spec.full_bytes for spec in specs)
        storage = Storage(
            full_bytes=full,
            serve={part: size for part, size in serve.items() if size},
            train={"weights": full},
        )
        parameters = {
            "block_rows": {str(group.width): group.block_rows for group in groups},
            "blocks": {str(group.width): group.num_kept for group in groups},
        }
        return Plan.of(storage, specs, budget, parameters)

    def build(
        self,
        specs: Sequence[TableSpec],
        stats: IdCounts,
        budget: Budget | None,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> PlannedTables:
        """Return untrained tables, whose closest initial blocks are merged if there is a budget.

        Raises:
            ValueError: if the budget is below one block of each width and the map.
        """
        self.feasible_plan(specs, stats, budget)
        full = full_tables(specs, seed=seed, init_std=self.init_std, device=device)
        if allowed_bytes(specs, budget) is None:
            owners = {}
        elif device.type == "meta":
            owners = {g.name: _some_owners(g) for g in self._groups(specs, budget)}
        else:
            owners = self.owners(full, specs, budget)
        made = self.blueprint(full, specs, budget, owners)
        return made.tables(specs, optimizer=optimizer, seed=seed, device=device)

    def run(self, ctx: Context) -> Tables:
        """Return tables of merged blocks."""
        made = self._found(ctx)
        tables = ctx.shared(partial(made.tables, ctx.specs, optimizer=ctx.optimizer, seed=ctx.seed))
        ctx.fit(tables, stage="finetune", recipe=Recipe(model="keep"))
        return tables

    def _found(self, ctx: Context) -> Blueprint:
        """Return the blocks that are left; the full tables are gone when they are tuned."""
        self.feasible_plan(ctx.specs, ctx.id_counts, ctx.budget)
        full = full_tables(
            ctx.specs,
            optimizer=ctx.optimizer,
            seed=ctx.seed,
            init_std=self.init_std,
            device=ctx.device,
        )
        ctx.fit(full, stage="train")
        owners = ctx.once("blocks", lambda: self.owners(full, ctx.specs, ctx.budget))
        return self.blueprint(full, ctx.specs, ctx.budget, owners)

    def shared_stages(self) -> Sequence[str]:
        """Return the last one: which blocks are left is known before it."""
        return self.stages[-1:]

    def owners(
        self, full: PlannedTables, specs: Sequence[TableSpec], budget: Budget | None
    ) -> dict[str, Tensor]:
        """Return which block (B,) stands for each, for each width that has shared blocks."""
        found = {}
        for group in self._groups(specs, budget):
            is_limited = allowed_bytes(specs, budget) is not None
            if is_limited and group.is_plain:
                continue
            blocks = group.cut({spec.name: full.table(spec.name) for spec in group.specs})
            if is_limited:
                owner = merge_closest(blocks, self.similarity, at_most=group.num_kept)
            else:
                owner = merge_alike(blocks, self.similarity, tolerance=self.tolerance)
            found[group.name] = owner
        return found

    def blueprint(
        self,
        full: PlannedTables,
        specs: Sequence[TableSpec],
        budget: Budget | None,
        owners: Mapping[str, Tensor],
    ) -> Blueprint:
        """Return the blueprint of the blocks that are left of full tables.

        Args:
            full: the tables.
            specs: of the tables.
            budget: what they may take.
            owners: which block (B,) stands for each, by the name of the blocks.
        """
        tables, initial, buffers, limits = [], {}, {}, {}
        lookups: dict[str, VirtualLookup] = {}
        for group in self._groups(specs, budget):
            weights = {spec.name: full.table(spec.name).detach() for spec in group.specs}
            owner = owners.get(group.name, torch.arange(group.num_blocks))
            kept, places = torch.unique(owner, return_inverse=True)
            group = replace(group, num_kept=kept.numel())
            if group.is_plain:
                for name, weight in weights.items():
                    tables.append(PhysicalTable(name=name, num_rows=len(weight), width=group.width))
                    initial[name], lookups[name] = weight, VirtualLookup(table=name)
                continue
            num_rows = group.num_kept * group.block_rows
            tables.append(PhysicalTable(name=group.name, num_rows=num_rows, width=group.width))
            initial[group.name] = group.cut(weights)[kept].view(num_rows, group.width)
            buffers[group.name], limits[group.name] = places.to(group.map_dtype), group.num_kept
            for name, program in group.programs().items():
                lookups[name] = VirtualLookup(table=group.name, program=program)
        plan = LookupPlan(tables=tuple(tables), outputs=_outputs(specs, lookups), buffers=limits)
        return Blueprint(plan=plan, buffers=buffers, initial=initial)

    def _groups(self, specs: Sequence[TableSpec], budget: Budget | None) -> list[Blocks]:
        """Return the tables of each width, with as many blocks as the budget holds."""
        allowed = allowed_bytes(specs, budget)
        full = sum(spec.full_bytes for spec in specs)
        found = []
        for width in dict.fromkeys(spec.embedding_dim for spec in specs):
            members = tuple(spec for spec in specs if spec.embedding_dim == width)
            if allowed is None:
                found.append(self._group(members, None))
            else:
                size = sum(spec.full_bytes for spec in members)
                found.append(self._group(members, allowed * size // full))
        return found

    def _group(self, specs: tuple[TableSpec, ...], allowed: int | None) -> Blocks:
        num_rows, width = sum(spec.num_embeddings for spec in specs), specs[0].embedding_dim
        block_rows = self.block_rows
        if block_rows is None:
            block_rows = min(_LARGEST_BLOCK, -(-num_rows // _NUM_BLOCKS))
            if allowed is not None:
                # 4 bytes for each block in the map, at most.
                block_rows = max(block_rows, -(-4 * num_rows * _MAP_SHARE // max(1, allowed)))
            block_rows = min(block_rows, num_rows)
        whole = Blocks(specs=specs, width=width, block_rows=block_rows, num_kept=1)
        whole = replace(whole, num_kept=whole.num_blocks)
        if allowed is None or whole.num_bytes <= allowed:
            return whole
        num_kept = (allowed - whole.map_dtype.itemsize * whole.num_blocks) // whole.block_bytes
        return replace(whole, num_kept=min(max(1, num_kept), whole.num_blocks - 1))


def _some_owners(group: Blocks) -> Tensor:
    """Return which block stands for each where the values of blocks are not known."""
    return torch.arange(group.num_blocks).clamp(max=group.num_kept - 1)


def _outputs(
    specs: Sequence[TableSpec], lookups: Mapping[str, VirtualLookup]
) -> tuple[Output, ...]:
    return tuple(
        Output(
            key=key,
            feature=feature,
            owner=spec.name,
            num_ids=spec.num_embeddings,
            embedding_dim=spec.embedding_dim,
            pooling=spec.pooling,
            lookups=(lookups[spec.name],),
        )
        for key, (spec, feature) in output_keys(specs).items()
    )
