"""Shaver: columns of fields that the loss does not need become one value for all ids.

The worth of a column of a table is its Shapley value in the game whose coalitions are sets of
columns, and whose gain is by how much the log loss falls when these are read instead of their
defaults, the means over the training ids:

    phi_b = E_order [ L(before b) - L(before b and b) ]

over random orders of all columns of all tables, each on a validation batch (SAGE). One ranking by
worth serves any budget.

Source: "Shaver: Shapley-value guided embedding reduction", WWW 2025 (the authors' code, as our
survey describes it); Covert et al., "Understanding Global Feature Contributions With Additive
Importance Measures" (SAGE), NeurIPS 2020. Departures: columns are ranked by worth for each byte
unless `rank_by` is "worth", for the tables' sizes differ by orders of magnitude; first-order
weights are columns like any other.

Shapes: `D` a table's width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from recemb.ids.hashing import hash_seed
from recemb.methods.pruned import allowed_bytes
from recemb.methods.shaved_rows import ShavedForm, ShavedTables
from recemb.tables.initial import Initial
from recemb.tables.method import Budget, Context, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.recipe import Recipe
from recemb.tables.spec import TableSpec, refuse_any_id
from recemb.tables.storage import Storage

RankBy = Literal["worth_per_byte", "worth"]

Column = tuple[str, int]
"""A table and the place of one of its columns."""


class Shaver(Method):
    """Ordinary training, Shapley values, and training on without the columns of the least worth.

    The budget is kept to a column: of the columns in the order of their ranking, all are kept that
    still fit. Without a budget all columns of positive worth stay. `plan` and `build`, which know
    nothing of worth, take first columns first.

    Args:
        num_orders: random orders; each costs as many losses of a batch as there are columns.
        rank_by: see the module.
        finetune: whether what is left is trained again, from where it stands.
        init_std: draw the initial weights from N(0, init_std); None draws them uniformly from
            +-1/sqrt(num_embeddings).

    Raises:
        ValueError: on an unknown word or a number out of its range.
    """

    starts_as_full = False  # columns that are shaved are zeros
    why_unshared = (
        "columns are judged, and their means taken, over whole tables, which no process has"
    )

    def __init__(
        self,
        *,
        num_orders: int = 20,
        rank_by: RankBy = "worth_per_byte",
        finetune: bool = True,
        init_std: float | None = None,
    ) -> None:
        if num_orders < 1:
            raise ValueError(f"Shaver: num_orders must be at least 1, got {num_orders}")
        if rank_by not in get_args(RankBy):
            raise ValueError(f"Shaver: rank_by must be worth_per_byte or worth, got '{rank_by}'")
        self.num_orders = num_orders
        self.rank_by: RankBy = rank_by
        self.finetune = finetune
        self.init_std = init_std
        self.stages = ("train", "finetune") if finetune else ("train",)

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return the tables whose first columns the budget holds; see `Method`."""
        refuse_any_id(specs, "Shaver")
        kept = self._first_columns(specs, budget)
        tables = self._tables(specs, kept, optimizer=None, seed=0, device=torch.device("meta"))
        storage: Storage = tables.storage()
        parameters = {"columns": {name: int(its.sum()) for name, its in kept.items()}}
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
    ) -> ShavedTables:
        """Return untrained tables with the columns of `plan`, the others being 0.

        Raises:
            ValueError: if the budget is below the defaults alone.
        """
        self.feasible_plan(specs, stats, budget)
        kept = self._first_columns(specs, budget)
        return self._tables(specs, kept, optimizer=optimizer, seed=seed, device=device)

    def run(self, ctx: Context) -> ShavedTables:
        """Return tables without the columns of the least worth."""
        self.feasible_plan(ctx.specs, ctx.id_counts, ctx.budget)
        everything = _masks(ctx.specs, columns_of(ctx.specs))
        tables = self._tables(
            ctx.specs, everything, optimizer=ctx.optimizer, seed=ctx.seed, device=ctx.device
        )
        ctx.fit(tables, stage="train")
        tables.set_defaults(column_means(tables, ctx.id_counts))
        worth = self.worth(tables, ctx)
        tables.keep(_masks(ctx.specs, self.chosen(ctx.specs, worth, ctx.budget)))
        if self.finetune:
            ctx.fit(tables, stage="finetune", recipe=Recipe(model="keep"))
        return tables

    def worth(self, tables: ShavedTables, ctx: Context) -> dict[Column, float]:
        """Return the Shapley value of each column, the mean over the orders."""
        columns = columns_of(ctx.specs)
        total = torch.zeros(len(columns), dtype=torch.float64)
        for number in range(self.num_orders):

            def gains(number: int = number) -> dict[str, Any]:
                generator = torch.Generator().manual_seed(hash_seed(ctx.seed, "order", number))
                order = torch.randperm(len(columns), generator=generator).tolist()
                return {"gains": gains_in_order(tables, ctx, columns, order, number)}

            total += ctx.once(f"shapley-{number:03d}", gains)["gains"]
        tables.keep(_masks(ctx.specs, columns))
        return dict(zip(columns, (total / self.num_orders).tolist(), strict=True))

    def chosen(
        self, specs: Sequence[TableSpec], worth: Mapping[Column, float], budget: Budget | None
    ) -> list[Column]:
        """Return the columns that stay."""
        allowed = allowed_bytes(specs, budget)
        if allowed is None:
            return [column for column, its in worth.items() if its > 0]
        rows = {spec.name: spec.num_embeddings for spec in specs}

        def rank(column: Column) -> float:
            return worth[column] / (rows[column[0]] if self.rank_by == "worth_per_byte" else 1)

        return fitting(specs, sorted(worth, key=rank, reverse=True), allowed)

    def _first_columns(
        self, specs: Sequence[TableSpec], budget: Budget | None
    ) -> dict[str, Tensor]:
        """Return the first columns of all tables that the budget holds."""
        columns = columns_of(specs)
        allowed = allowed_bytes(specs, budget)
        if allowed is not None:
            columns = fitting(specs, sorted(columns, key=lambda column: column[1]), allowed)
        return _masks(specs, columns)

    def _tables(
        self,
        specs: Sequence[TableSpec],
        kept: Mapping[str, Tensor],
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> ShavedTables:
        initial = {}
        if self.init_std is not None:
            rule = Initial(distribution="normal", spread=self.init_std)
            initial = {spec.name: rule for spec in specs}
        return ShavedTables(
            specs, kept=kept, initial=initial, optimizer=optimizer, seed=seed, device=device
        )


def columns_of(specs: Sequence[TableSpec]) -> list[Column]:
    """Return all columns, table by table."""
    return [(spec.name, column) for spec in specs for column in range(spec.embedding_dim)]


def column_means(tables: ShavedTables, stats: IdCounts) -> dict[str, Tensor]:
    """Return the mean (D,) of each table's columns over the ids of the training split."""
    found = {}
    for spec in tables.specs:
        weight = tables.table(spec.name).detach()
        counts = torch.stack([stats[f] for f in spec.feature_names]).sum(dim=0).double()
        share = (counts / counts.sum().clamp(min=1)).to(weight.device)
        found[spec.name] = (share.unsqueeze(1) * weight).sum(dim=0).float()
    return found


def gains_in_order(
    tables: ShavedTables,
    ctx: Context,
    columns: Sequence[Column],
    order: Sequence[int],
    position: int,
) -> Tensor:
    """Return by how much the loss falls with each column, added in an order, float64.

    Args:
        tables: changed: all columns are kept in the end.
        ctx: says the loss.
        columns: all columns.
        order: the places of the columns.
        position: of the validation batch.
    """
    batch = ctx.validation_batch(position)
    kept = {name: torch.zeros_like(its) for name, its in _masks(tables.specs, columns).items()}
    tables.keep(kept)
    gains = torch.zeros(len(columns), dtype=torch.float64)
    before = ctx.loss(tables, batch)
    for place in order:
        name, column = columns[place]
        kept[name][column] = True
        tables.keep({name: kept[name]})
        after = ctx.loss(tables, batch)
        gains[place] = before - after
        before = after
    return gains


def fitting(specs: Sequence[TableSpec], ranked: Sequence[Column], num_bytes: int) -> list[Column]:
    """Return, of columns from the best to the worst, those that still fit in the bytes."""
    sizes = {spec.name: (spec.num_embeddings, spec.embedding_dim) for spec in specs}
    columns = dict.fromkeys(sizes, 0)
    left = num_bytes - sum(_bytes(*sizes[name], 0) for name in sizes)
    chosen = []
    for column in ranked:
        name = column[0]
        more = _bytes(*sizes[name], columns[name] + 1) - _bytes(*sizes[name], columns[name])
        if more <= left:
            left -= more
            columns[name] += 1
            chosen.append(column)
    return chosen


def _bytes(num_rows: int, width: int, num_columns: int) -> int:
    form = ShavedForm(num_rows=num_rows, width=width, num_columns=num_columns)
    return sum(form.parts().values())


def _masks(specs: Sequence[TableSpec], columns: Sequence[Column]) -> dict[str, Tensor]:
    """Return which columns (D,) of each table are among `columns`."""
    masks = {spec.name: torch.zeros(spec.embedding_dim, dtype=torch.bool) for spec in specs}
    for name, column in columns:
        masks[name][column] = True
    return masks
