"""OptEmbed: which rows a table needs, and how wide each field's rows must be.

Three stages: a supernet learns weights and thresholds while random prefixes of the rows are read;
an evolutionary search picks a width for each field by validation AUC, without training; the rows
and columns that are left are trained again from their initial weights.

Source: Lyu et al., "OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction",
CIKM 2022, arXiv 2208.04482.
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.methods.compaction import compact, compact_bytes
from recemb.methods.evolution import Evolution, Found, Genes, evolve
from recemb.methods.masked_rows import MaskedRows, Thresholds
from recemb.tables.blueprint import Blueprint
from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.method import Budget, Context, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.recipe import Recipe, Step, Updates
from recemb.tables.spec import TableSpec
from recemb.tables.storage import Storage
from recemb.tables.tables import Tables
from recemb.tables.transform import TransformFactory


class NothingPrunedWarning(UserWarning):
    """The settings prune no rows, though they were to be pruned."""


class Supernet(PlannedTables):
    """Full tables whose rows are masked and cut, see `MaskedRows`.

    First-order tables, of width 1, are left alone.

    Args:
        specs: the tables.
        transform: makes the masks of a group.
        widths: the prefix width of each table to begin with; D where it is not named.
        optimizer: how rows are updated.
        initial: how they are drawn.
        seed: of the initial weights.
        device: where the tables live.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        transform: TransformFactory,
        widths: Mapping[str, int],
        optimizer: TableOptimizer | None,
        initial: Mapping[str, Initial],
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__(
            specs,
            full_plan(specs),
            optimizer=optimizer,
            transform=transform,
            initial=initial,
            seed=seed,
            device=device,
        )
        self._first_widths = dict(widths)
        self._is_planned_only = device.type == "meta"
        if not self._is_planned_only:
            self.set_widths(widths)

    @property
    def masks(self) -> list[MaskedRows]:
        """Return the masks, group by group."""
        return [t for t in self.transforms.all() if isinstance(t, MaskedRows)]

    @property
    def fields(self) -> list[str]:
        """Return the tables that are masked, in the order of `specs`."""
        masked = {table.name for mask in self.masks for table in mask.group.tables}
        return [spec.name for spec in self.specs if spec.name in masked]

    def draw_widths(self, flag: bool) -> None:
        """Read a random prefix of every row in training, while `flag` is True."""
        for mask in self.masks:
            mask.draws_widths = flag

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Cut the rows of the tables named to these widths."""
        for mask in self.masks:
            for place, table in enumerate(mask.group.tables):
                if table.name in widths:
                    mask.widths[place] = widths[table.name]

    def widths(self) -> dict[str, int]:
        """Return the widths that rows are cut to."""
        return {
            table.name: int(width)
            for mask in self.masks
            for table, width in zip(mask.group.tables, mask.widths.tolist(), strict=True)
        }

    def kept(self) -> dict[str, Tensor]:
        """Return, for each masked table, which of its rows (n,) are on."""
        found = {}
        for mask in self.masks:
            kept = mask.kept(self.engine.store_of(mask.group.tables[0].name).weight)
            for table, first in zip(mask.group.tables, mask.group.first_rows, strict=True):
                found[table.name] = kept[first : first + table.num_rows]
        return found

    def compacted(self, weights: Mapping[str, Tensor] | None = None) -> Blueprint:
        """Return the blueprint of the tables that are left.

        Args:
            weights: their initial weights (n, D); None for the present ones.
        """
        if weights is None:
            weights = {spec.name: self.table(spec.name).detach() for spec in self.specs}
        return compact(self.specs, kept=self.kept(), widths=self.widths(), weights=weights)

    def storage(self) -> Storage:
        """Return the bytes of the compacted tables in serving, and of the supernet in training."""
        train = super().storage()
        if self._is_planned_only:
            frozen = compact(self.specs, kept={}, widths=self._first_widths)
        else:
            frozen = compact(self.specs, kept=self.kept(), widths=self.widths())
        return Storage(full_bytes=train.full_bytes, serve=serving_parts(frozen), train=train.train)

    def freeze(self) -> PlannedTables:
        """Return the compacted tables, which give bit-equal vectors."""
        made = self.compacted()
        device = self.table(self.specs[0].name).device
        tables = made.tables(self.specs, optimizer=None, seed=0, device=device)
        return tables.without_training()


class OptEmbed(Method):
    """OptEmbed, with rows, widths or both learned; see the module.

    Rows fall below their threshold because weight decay drives those without data to zero, so the
    supernet is trained by a dense pass over the tables (`rows: all`): an update of touched rows
    only prunes nothing that was never seen.

    A budget is kept by the search, which scores no candidate above it; the paper has none.

    Args:
        prune_rows: learn thresholds; with `search_widths` False this is OptEmbed-E.
        search_widths: search widths; with `prune_rows` False this is OptEmbed-D.
        thresholds: fields of `Thresholds`.
        evolution: fields of `Evolution`.
        weight_decay: L2 on all rows; None for the optimizer's own.
        retrain_from: "init", the initial weights and a fresh network, or "supernet", those that
            it has learnt.
        init_std: of the initial weights; None for Xavier's uniform distribution over all tables.

    Raises:
        ValueError: if neither rows nor widths are learned.
    """

    starts_as_full = False  # rows below their thresholds are zeros
    stages = ("supernet", "retrain")

    def __init__(
        self,
        *,
        prune_rows: bool = True,
        search_widths: bool = True,
        thresholds: Mapping[str, Any] | None = None,
        evolution: Mapping[str, Any] | None = None,
        weight_decay: float | None = None,
        retrain_from: Literal["init", "supernet"] = "init",
        init_std: float | None = None,
    ) -> None:
        if not (prune_rows or search_widths):
            raise ValueError(
                "OptEmbed: nothing is learned with prune_rows and search_widths both false; set "
                "one, or take embedding=full"
            )
        if retrain_from not in ("init", "supernet"):
            raise ValueError(
                f"OptEmbed: retrain_from must be init or supernet, got '{retrain_from}'"
            )
        self.search_widths = search_widths
        self.thresholds = Thresholds(**(thresholds or {})) if prune_rows else None
        self.evolution = Evolution(**(evolution or {}))
        self.weight_decay = weight_decay
        self.retrain_from = retrain_from
        self.init_std = init_std

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return the largest tables of one width that the budget allows, with every row.

        What comes of training is at most that large, and not known before.
        """
        made = compact(specs, kept={}, widths=self._widths(specs, budget))
        full = Blueprint(plan=full_plan(specs)).tables(
            specs, optimizer=None, seed=0, device=torch.device("meta")
        )
        storage = Storage(
            full_bytes=full.storage().full_bytes,
            serve=serving_parts(made),
            train=full.storage().train,
        )
        return Plan.of(storage, specs, budget, made.parameters)

    def build(
        self,
        specs: Sequence[TableSpec],
        stats: IdCounts,
        budget: Budget | None,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> Supernet:
        """Return the untrained supernet, cut to the widths of `plan`.

        Raises:
            ValueError: if the budget is below vectors of one value.
        """
        widths = self._widths(specs, budget)
        if budget is not None:
            least = compact(specs, kept={}, widths=widths).serve_bytes
            budget.require(least, specs, owner="OptEmbed")
        return Supernet(
            specs,
            transform=self._masks,
            widths=widths,
            optimizer=optimizer,
            initial=self._initial(specs),
            seed=seed,
            device=device,
        )

    def run(self, ctx: Context) -> Tables:
        """Return retrained tables."""
        optimizer = self._optimizer(ctx)
        made = self._found(ctx, optimizer)
        tables = ctx.shared(partial(made.tables, ctx.specs, optimizer=optimizer, seed=ctx.seed))
        ctx.fit(tables, stage="retrain", recipe=Recipe(model=self._retrained_model()))
        return tables

    def _found(self, ctx: Context, optimizer: TableOptimizer) -> Blueprint:
        """Return the tables that are left; the supernet is gone when they are retrained."""
        named: dict[str, Any] = {"optimizer": optimizer, "seed": ctx.seed, "device": ctx.device}
        supernet = self.build(ctx.specs, ctx.id_counts, ctx.budget, **named)
        initial = {s.name: supernet.table(s.name).detach().clone() for s in ctx.specs}
        supernet.set_widths({s.name: s.embedding_dim for s in ctx.specs})
        supernet.draw_widths(self.search_widths)
        ctx.fit(supernet, stage="supernet", recipe=self._recipe(supernet))
        if self.search_widths:
            supernet.set_widths(self.search(supernet, ctx))
        return supernet.compacted(initial if self.retrain_from == "init" else None)

    def shared_stages(self) -> Sequence[str]:
        """Return the last one: which rows and columns are left is known before it."""
        return self.stages[-1:]

    def search(self, supernet: Supernet, ctx: Context) -> dict[str, int]:
        """Return the widths that evolution finds."""
        fields = supernet.fields
        allowed = None if ctx.budget is None else ctx.budget.allowed_bytes(ctx.specs)
        kept = supernet.kept()
        rows = {name: int(flags.sum()) for name, flags in kept.items()}
        of_name = {spec.name: spec for spec in ctx.specs}
        others = sum(spec.full_bytes for spec in ctx.specs if spec.name not in kept)

        def is_allowed(genes: Genes) -> bool:
            sizes = (
                compact_bytes(of_name[name], num_kept=rows[name], width=width)
                for name, width in zip(fields, genes, strict=True)
            )
            return allowed is None or others + sum(sizes) <= allowed

        def fitness(genes: Genes) -> float:
            supernet.set_widths(dict(zip(fields, genes, strict=True)))
            return ctx.evaluate(supernet)["val/auc"]

        found: Found = evolve(
            fitness,
            limits=[of_name[name].embedding_dim for name in fields],
            evolution=self.evolution,
            seed=ctx.seed,
            is_allowed=is_allowed,
            once=ctx.once,
        )
        return dict(zip(fields, found.best, strict=True))

    def _recipe(self, supernet: Supernet) -> Recipe:
        thresholds = [m.thresholds for m in supernet.masks if m.thresholds is not None]
        if self.thresholds is None:
            return Recipe()
        sgd = torch.optim.SGD(thresholds, lr=self.thresholds.learning_rate)
        step = self._step(sgd, thresholds, self.thresholds.minimum)
        return Recipe(step=step, extra={"thresholds": sgd})

    def _step(
        self, sgd: torch.optim.SGD, thresholds: Sequence[Tensor], minimum: float | None
    ) -> Step:
        def step(updates: Updates, batches: Sequence[Batch]) -> float:
            sgd.zero_grad()
            loss = updates.update(batches)
            sgd.step()
            if minimum is not None:
                with torch.no_grad():
                    for threshold in thresholds:
                        threshold.clamp_(min=minimum)
            return loss

        return step

    def _retrained_model(self) -> Literal["fresh", "keep"]:
        """Return which network goes with the rows that are retrained."""
        return "fresh" if self.retrain_from == "init" else "keep"

    def _optimizer(self, ctx: Context) -> TableOptimizer:
        decay = ctx.optimizer.weight_decay if self.weight_decay is None else self.weight_decay
        if self.thresholds and not decay:
            warnings.warn(
                "OptEmbed: without weight decay rows keep their norms, and hardly any falls below "
                "its threshold; set weight_decay (the authors': 1e-6 to 1e-3)",
                category=NothingPrunedWarning,
                stacklevel=2,
            )
        rows: Literal["all", "touched"] = "all" if self.thresholds else ctx.optimizer.rows
        return dataclasses.replace(ctx.optimizer, rows=rows, weight_decay=decay)

    def _masks(self, group: Group) -> MaskedRows | None:
        if group.width == 1:
            return None
        return MaskedRows(group, settings=self.thresholds)

    def _initial(self, specs: Sequence[TableSpec]) -> dict[str, Initial]:
        if self.init_std is not None:
            rule = Initial(distribution="uniform", spread=self.init_std * 3**0.5)
            return {spec.name: rule for spec in specs}
        made = {}
        for spec in specs:
            alike = [s for s in specs if s.embedding_dim == spec.embedding_dim]
            num_rows = sum(s.num_embeddings for s in alike)
            spread = (6 / (num_rows + spec.embedding_dim)) ** 0.5
            made[spec.name] = Initial(distribution="uniform", spread=spread)
        return made

    def _widths(self, specs: Sequence[TableSpec], budget: Budget | None) -> dict[str, int]:
        """Return the largest width of all vectors within the budget, at least 1, table by table."""
        wide = [spec for spec in specs if spec.embedding_dim > 1]
        most = max((spec.embedding_dim for spec in wide), default=1)
        width = most
        if budget is not None and self.search_widths:
            allowed = budget.allowed_bytes(specs)
            while width > 1 and _uniform_bytes(specs, width) > allowed:
                width -= 1
        return {spec.name: min(width, spec.embedding_dim) for spec in wide}


def serving_parts(made: Blueprint) -> dict[str, int]:
    """Return the bytes of a blueprint's tables, part by part."""
    buffers = sum(t.nbytes for t in made.buffers.values())
    parts = {"weights": made.serve_bytes - buffers, "buffers": buffers}
    return {name: size for name, size in parts.items() if size}


def _uniform_bytes(specs: Sequence[TableSpec], width: int) -> int:
    return sum(4 * s.num_embeddings * min(width, s.embedding_dim) for s in specs)
