"""AdaEmbed: rows for the most important ids alone, dealt out anew as importance changes.

    e(i) = H[row(i)] if i has a row, else 0

The importance of an id is how often it occurs times the norm of its vectors' gradients, over the
95th percentile of its field, so that fields compare. Every so many updates it is checked which ids
would have the rows; if they differ from those that do in more than 5 %, rows change hands.

Source: Lai et al., "AdaEmbed: Adaptive Embedding for Large-Scale Recommendation Models", OSDI 2023,
and the reimplementation in the code of Zhang et al., "CAFE", SIGMOD 2024, whose numbers are used.
Departures: the percentile is that of the ids that have any importance, and exact; how often rows
are checked follows the length of the training unless it is given; a row begins at zero in new
hands, which is what its id read before; serving holds a sorted list of the ids that have rows.

Shapes: `n` ids of a pool, `R` its rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.methods.computed import largest_size
from recemb.methods.row_pool import RowPool, names_of, pool_plan, pools_of, spread_rows
from recemb.methods.watched_tables import Field, Seen, WatchedTables, fields_of, sum_by_id
from recemb.tables.initial import Initial
from recemb.tables.method import Budget, Context, IdCounts, Method, Plan, built_for
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.program import ABSENT
from recemb.tables.recipe import Recipe, Updates
from recemb.tables.spec import TableSpec, refuse_any_id
from recemb.tables.storage import Storage

_STEPS = 1 << 20
"""Rows are one in so many steps of a pool's ids."""

_PERCENTILE = 0.95
_CHECKS = 100
"""How often rows are checked in a training, where it is not given."""

_CHECKS_PER_DECAY = 4
"""The authors check every 4,096 updates, and let importance decay every 16,384."""


class AdaEmbedTables(WatchedTables):
    """Tables whose rows are dealt out anew by `adapt`, to be called after every update.

    Attributes:
        check_every: updates between checks.

    Args:
        specs: the tables.
        pools: those that share rows; the others stay whole.
        settings: says how rows are dealt.
        optimizer: how rows are updated.
        seed: of the initial weights.
        device: where the tables live.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        pools: Sequence[RowPool],
        *,
        settings: "AdaEmbed",
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.pools = tuple(pools)
        self.settings = settings
        self.check_every = settings.check_every_steps or 1
        buffers = {f"{pool.name}.rows": spread_rows(pool) for pool in pools}
        buffers |= {f"{pool.name}.importance": torch.zeros(pool.num_ids) for pool in pools}
        initial: dict[str, Initial | Tensor] = {}
        for pool in pools:
            largest = max(field[0].num_embeddings for field in pool.fields)
            names = [pool.table(place) for place in range(len(pool.widths))]
            initial |= dict.fromkeys(names, settings.initial(largest))
        pooled = {name for pool in pools for field in pool.fields for name in names_of(field)}
        self.whole = tuple(spec for spec in specs if spec.name not in pooled)
        initial |= {spec.name: settings.initial(spec.num_embeddings) for spec in self.whole}
        super().__init__(
            specs,
            pool_plan(specs, pools, is_served=False),
            optimizer=optimizer,
            buffers={**buffers, "clock": torch.zeros(1, dtype=torch.int64)},
            initial=initial,
            seed=seed,
            device=device,
        )

    def observe(self, seen: Seen, num_examples: int) -> None:
        """Add the importance of a pass's ids; gradients are those of a sum over its examples."""
        for pool in self.pools:
            for field, first in zip(pool.fields, pool.firsts, strict=True):
                if field in seen:
                    ids, norms = sum_by_id(*seen[field])
                    importance = self.plan_buffers[f"{pool.name}.importance"]
                    importance[ids + first] += (norms * num_examples).float()

    @torch.no_grad()
    def adapt(self) -> None:
        """Count an update; where a check is due, deal rows out anew."""
        clock = self.plan_buffers["clock"]
        clock += 1
        if int(clock) % self.check_every:
            return
        for pool in self.pools:
            self._check_rows(pool)
            if int(clock) % (_CHECKS_PER_DECAY * self.check_every) == 0:
                self.plan_buffers[f"{pool.name}.importance"].mul_(self.settings.decay)

    def deserving(self, pool: RowPool) -> Tensor:
        """Return which ids of a pool (n,) are to have rows, R of them; of equals, who has one."""
        scores = self.plan_buffers[f"{pool.name}.importance"].clone()
        for field, first in zip(pool.fields, pool.firsts, strict=True):
            its = scores[first : first + field[0].num_embeddings]
            positive = its[its > 0]
            if positive.numel():
                place = max(1, round(_PERCENTILE * positive.numel()))
                its /= positive.kthvalue(place).values
        limit = scores.topk(pool.num_rows).values[-1]
        chosen = scores > limit
        left = pool.num_rows - int(chosen.sum())
        has_row = self.plan_buffers[f"{pool.name}.rows"] != ABSENT
        for equal in ((scores == limit) & has_row, (scores == limit) & ~has_row):
            taken = equal.nonzero().view(-1)[:left]
            chosen[taken] = True
            left -= taken.numel()
        return chosen

    def storage(self) -> Storage:
        """Return the bytes of rows and lists of ids; training holds rows and importance by id."""
        found = super().storage()
        train = dict(found.train)
        train["importance"] = train.pop("buffers")
        serve = {"weights": found.serve["weights"]}
        if index := sum(pool.index_bytes for pool in self.pools):
            serve["index"] = index
        return Storage(full_bytes=found.full_bytes, serve=serve, train=train)

    def freeze(self) -> PlannedTables:
        """Return the same vectors, read through sorted lists of the ids that have rows."""
        buffers = {}
        initial = {spec.name: self.table(spec.name).detach() for spec in self.whole}
        for pool in self.pools:
            rows = self.plan_buffers[f"{pool.name}.rows"]
            ids = (rows != ABSENT).nonzero().view(-1)
            buffers[f"{pool.name}.ids"] = ids.to(pool.key_dtype)
            for place in range(len(pool.widths)):
                name = pool.table(place)
                initial[name] = self.table(name).detach()[rows[ids].long()]
        tables = PlannedTables(
            self.specs,
            pool_plan(self.specs, self.pools, is_served=True),
            bounds=self._bounds.policy,
            buffers=buffers,
            initial=initial,
            device=self._device,
        )
        return tables.without_training()

    def _check_rows(self, pool: RowPool) -> None:
        """Deal the rows of a pool out anew, if enough of them would change hands."""
        rows = self.plan_buffers[f"{pool.name}.rows"]
        chosen, has_row = self.deserving(pool), rows != ABSENT
        gaining = (chosen & ~has_row).nonzero().view(-1)
        losing = (has_row & ~chosen).nonzero().view(-1)
        if gaining.numel() <= self.settings.change_share * pool.num_rows:
            return
        moved = rows[losing].long()
        rows[gaining], rows[losing] = rows[losing], ABSENT
        for place in range(len(pool.widths)):
            name = pool.table(place)
            self.table(name).detach()[moved] = 0
            self.engine.store_of(name).reset_rows(name, moved)


class AdaEmbed(Method):
    """Rows for some ids, the others being zero.

    A budget is exact but for a row. One of serving counts the list of ids, 4 bytes for each row;
    one of training 8 bytes for every id, as the authors do: its floor is 2/D.

    Args:
        check_every_steps: updates between checks; None for a hundredth of the training.
        change_share: rows change hands if more than this share of them would.
        decay: of importance, at every fourth check.
        exact_below: tables of at most so many ids stay whole.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.

    Raises:
        ValueError: on a number out of its range.
    """

    starts_as_full = False  # ids without a row are zeros
    why_unshared = (
        "rows change hands by the importance of all ids of a table, which no process sees"
    )

    def __init__(
        self,
        *,
        check_every_steps: int | None = None,
        change_share: float = 0.05,
        decay: float = 0.8,
        exact_below: int = 100,
        init_std: float | None = None,
    ) -> None:
        if check_every_steps is not None and check_every_steps < 1:
            raise ValueError(
                f"AdaEmbed: check_every_steps must be at least 1 or null, got {check_every_steps}"
            )
        if not 0 <= change_share < 1 or not 0 < decay <= 1:
            raise ValueError(
                "AdaEmbed: change_share must be in [0, 1) and decay in (0, 1], got "
                f"{change_share} and {decay}"
            )
        self.check_every_steps = check_every_steps
        self.change_share = change_share
        self.decay = decay
        self.exact_below = exact_below
        self.init_std = init_std

    def initial(self, num_ids: int) -> Initial:
        """Return how the rows of tables of so many ids are drawn."""
        if self.init_std is None:
            return Initial.dlrm(num_ids)
        return Initial(distribution="uniform", spread=self.init_std * 3**0.5)

    def pools(self, specs: Sequence[TableSpec], budget: Budget | None) -> list[RowPool]:
        """Return the pools of the most rows within `budget`; of a row each if none fit it."""
        shapes: dict[tuple[object, ...], list[Field]] = {}
        for field in fields_of(specs):
            if field[0].num_embeddings > self.exact_below:
                widths = tuple(spec.embedding_dim for spec in field)
                shapes.setdefault((widths, field[0].pooling == "none"), []).append(field)
        pooled = {
            name for fields in shapes.values() for field in fields for name in names_of(field)
        }
        whole = sum(spec.full_bytes for spec in specs if spec.name not in pooled)
        of_train = budget is not None and budget.of == "train"

        def num_bytes(size: int) -> int:
            made = pools_of(shapes, size / _STEPS)
            held = sum(8 * p.num_ids if of_train else p.index_bytes for p in made)
            return whole + held + sum(p.row_bytes for p in made) + (8 if of_train else 0)

        return pools_of(shapes, largest_size(num_bytes, budget, specs, most=_STEPS) / _STEPS)

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return what `build` would make; see `Method`."""
        refuse_any_id(specs, "AdaEmbed")
        pools = self.pools(specs, budget)
        named: dict[str, Any] = {"optimizer": None, "seed": 0, "device": torch.device("meta")}
        storage = AdaEmbedTables(specs, pools, settings=self, **named).storage()
        parameters = {"rows": {pool.name: pool.num_rows for pool in pools}}
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
    ) -> AdaEmbedTables:
        """Return untrained tables whose rows belong to ids at equal distances; see `Method`.

        Raises:
            ValueError: if the budget is below the smallest size.
        """
        self.feasible_plan(specs, stats, budget)
        pools = self.pools(specs, budget)
        return AdaEmbedTables(
            specs, pools, settings=self, optimizer=optimizer, seed=seed, device=device
        )

    def run(self, ctx: Context) -> PlannedTables:
        """Return tables whose rows were dealt out while training."""
        tables = built_for(ctx, self.build)

        def step(updates: Updates, batches: Sequence[Batch]) -> float:
            if self.check_every_steps is None:
                tables.check_every = max(1, updates.total_steps // _CHECKS)
            loss = updates.update(batches)
            tables.adapt()
            return loss

        ctx.fit(tables, stage="train", recipe=Recipe(step=step))
        return tables
