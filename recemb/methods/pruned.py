"""Full tables many of whose values are zero in the end, and what the methods share that make them.

Shapes: `n` rows of a table, `D` its width, `R` rows of a group's buffer, `N` rows that were read.
"""

import abc
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recemb.methods.ranking import Cut, Ranking, magnitudes, whole
from recemb.methods.sparse_rows import (
    SparseForm,
    SparseRows,
    form_of,
    pack_bits,
    smallest_form,
    unpack_bits,
)
from recemb.tables.blueprint import Blueprint
from recemb.tables.computed import ComputedTables
from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.method import Budget, Context, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.row_source import merge_bytes
from recemb.tables.spec import TableSpec
from recemb.tables.storage import Storage
from recemb.tables.tables import Tables
from recemb.tables.transform import RowTransform, TransformFactory

NEVER_STOP = 1 << 30
"""The patience of stages that must not end before their time."""


class FixedMask(RowTransform):
    """Switches single values off; they get no gradients.

    Args:
        group: the tables.
        masks: which values (n, D) of a table stay, all on one device; all, where a table is not
            named.
    """

    bits: Tensor

    def __init__(self, group: Group, masks: Mapping[str, Tensor]) -> None:
        super().__init__(group)
        parts = []
        device = next((mask.device for mask in masks.values()), None)
        for table in group.tables:
            mask = masks.get(table.name)
            if mask is None:
                mask = torch.ones(table.num_rows, table.width, dtype=torch.bool, device=device)
            parts.append(pack_bits(mask).view(table.num_rows, -1))
        self.register_buffer("bits", torch.cat(parts))

    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the vectors (N, D), masked."""
        return vectors * unpack_bits(self.bits[rows.clamp(min=0).long()], self.group.width)


class PrunedTables(PlannedTables):
    """Full tables in training, sparse ones in serving.

    Args:
        specs: the tables.
        masks: which values (n, D) of a table stay, for good; None if `transform` decides.
        transform: makes what happens to rows; not together with `masks`.
        forms: what each table will be in serving, where no values say it: on the meta device.
        initial: how tables are drawn, or what they are.
        optimizer: how rows are updated.
        seed: of the initial weights.
        device: where the tables live.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        masks: Mapping[str, Tensor] | None = None,
        transform: TransformFactory | None = None,
        forms: Mapping[str, SparseForm] | None = None,
        initial: Mapping[str, Initial | Tensor] | None = None,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> None:
        assert masks is None or transform is None
        self._forms = forms

        def masked(group: Group) -> FixedMask | None:
            its = {t.name: masks[t.name] for t in group.tables if t.name in masks} if masks else {}
            return FixedMask(group, its) if its else None

        super().__init__(
            specs,
            full_plan(specs),
            optimizer=optimizer,
            transform=masked if masks else transform,
            initial=initial,
            seed=seed,
            device=device,
        )

    @torch.no_grad()
    def served(self, name: str) -> Tensor:
        """Return the values (n, D) of a table as lookups in eval mode see them."""
        weight = self.table(name).detach()
        rows = torch.arange(weight.shape[0], device=weight.device)
        return self.transforms.apply_to_rows(name, weight, rows)

    def ranking(self) -> Ranking:
        """Return the ranking of all values by their magnitudes."""
        return Ranking({spec.name: magnitudes(self.served(spec.name)) for spec in self.specs})

    def prune(self, ranking: Ranking, cut: Cut) -> None:
        """Set all values to zero that `cut` does not keep; they may grow again."""
        for spec in self.specs:
            weight = self.table(spec.name).detach()
            weight.masked_fill_(~ranking.kept(spec.name, cut), 0)

    def storage(self) -> Storage:
        """Return the bytes of the sparse form in serving, and those of full tables in training."""
        train = super().storage()
        forms = self._forms
        if forms is None or self._device.type != "meta":
            forms = {spec.name: form_of(self.served(spec.name)) for spec in self.specs}
        serve = serving_parts(list(forms.values()))
        return Storage(full_bytes=train.full_bytes, serve=serve, train=train.train)

    def freeze(self) -> ComputedTables:
        """Return the sparse form, which gives bit-equal vectors; tables without zeros stay."""
        values = {spec.name: self.served(spec.name) for spec in self.specs}
        plain = [spec for spec in self.specs if form_of(values[spec.name]).is_plain]
        sparse = [spec.name for spec in self.specs if spec not in plain]
        planned = None
        if plain:
            made = Blueprint(plan=full_plan(plain), initial={s.name: values[s.name] for s in plain})
            device = values[plain[0].name].device
            tables = made.tables(
                plain, optimizer=None, seed=0, device=device, bounds=self._bounds.policy
            )
            planned = tables.without_training()
        return ComputedTables(
            self.specs,
            sources={name: SparseRows.of(values[name]) for name in sparse},
            source_of={name: name for name in sparse},
            planned=planned,
            bounds=self._bounds.policy,
        ).eval()


class EarlyEndWarning(UserWarning):
    """A search ended before what it learnt kept the budget."""


def warn_of_early_end(owner: str, cut: Cut) -> None:
    """Warn that the thresholds of `owner` had not pruned to the budget, which `cut` does."""
    warnings.warn(
        f"{owner}: the search ended before the thresholds had pruned to the budget; the values "
        f"with the largest margins stay, {cut.share:.4f} of all. Raise search_epochs, "
        "thresholds.learning_rate or thresholds.initial",
        category=EarlyEndWarning,
        stacklevel=3,
    )


class PruningMethod(Method, abc.ABC):
    """A method that learns which values of full tables are worth their bytes.

    `plan` and `build` know nothing of training: they spread the values that a budget holds evenly
    over every table, at least one each, which is the pattern of the most bytes, so that training,
    whose patterns leave rows empty, ends with at least as many values.

    Args:
        init_std: draw the initial weights from N(0, init_std); None draws them uniformly from
            +-1/sqrt(num_embeddings).
    """

    starts_as_full = False  # a part of the values is zero

    def __init__(self, *, init_std: float | None) -> None:
        self.init_std = init_std

    def share_without_budget(self) -> float:
        """Return the share of values that stay where no budget says it."""
        return 1.0

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return the sparse form of the most values within `budget`; see `Method`."""
        counts = self._counts(specs, budget)
        forms = _spread_forms(specs, counts)
        full = sum(spec.full_bytes for spec in specs)
        storage = Storage(
            full_bytes=full, serve=serving_parts(list(forms.values())), train={"weights": full}
        )
        parameters = {
            "values": counts,
            "forms": {name: f"{form.rows} rows, {form.values}" for name, form in forms.items()},
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
    ) -> Tables:
        """Return untrained tables under the masks of `plan`, which stay as they are.

        Raises:
            ValueError: if the budget is below one value for each table.
        """
        self.feasible_plan(specs, stats, budget)
        counts = self._counts(specs, budget)
        pruned = [spec for spec in specs if counts[spec.name] < _size(spec)]
        return PrunedTables(
            specs,
            masks={spec.name: _spread(spec, counts[spec.name], device) for spec in pruned},
            forms=_spread_forms(specs, counts),
            initial=self.initial(specs),
            optimizer=optimizer,
            seed=seed,
            device=device,
        )

    def initial(self, specs: Sequence[TableSpec]) -> dict[str, Initial | Tensor]:
        """Return how the weights are drawn."""
        if self.init_std is None:
            return {}
        rule = Initial(distribution="normal", spread=self.init_std)
        return {spec.name: rule for spec in specs}

    def cut(self, ranking: Ranking, ctx: Context) -> Cut:
        """Return the largest share that the budget of `ctx` holds, or that of no budget."""
        allowed = allowed_bytes(ctx.specs, ctx.budget)
        if allowed is None:
            return ranking.cut(self.share_without_budget())
        return ranking.within(allowed)

    def _counts(self, specs: Sequence[TableSpec], budget: Budget | None) -> dict[str, int]:
        """Return the number of values of each table, the same share of all, at least 1."""
        steps = max(_size(spec) for spec in specs)
        allowed = allowed_bytes(specs, budget)
        if allowed is None:
            return _counts_at(specs, whole(self.share_without_budget() * steps), steps)
        low, high = 0, steps
        while low < high:
            middle = (low + high + 1) // 2
            forms = _spread_forms(specs, _counts_at(specs, middle, steps))
            if sum(form.num_bytes for form in forms.values()) <= allowed:
                low = middle
            else:
                high = middle - 1
        return _counts_at(specs, low, steps)


def allowed_bytes(specs: Sequence[TableSpec], budget: Budget | None) -> int | None:
    """Return the bytes that serving may take; None for no limit."""
    if budget is None or budget.of == "train":
        return None
    return budget.allowed_bytes(specs)


def serving_parts(forms: Sequence[SparseForm]) -> dict[str, int]:
    """Return the bytes of all tables, part by part."""
    return merge_bytes([form.parts() for form in forms])


def table_options(ctx: Context) -> dict[str, Any]:
    """Return the arguments of tables that the context decides."""
    return {"optimizer": ctx.optimizer, "seed": ctx.seed, "device": ctx.device}


def _size(spec: TableSpec) -> int:
    return spec.num_embeddings * spec.embedding_dim


def _counts_at(specs: Sequence[TableSpec], step: int, steps: int) -> dict[str, int]:
    return {spec.name: max(1, step * _size(spec) // steps) for spec in specs}


def _spread_forms(specs: Sequence[TableSpec], counts: Mapping[str, int]) -> dict[str, SparseForm]:
    """Return the forms of tables whose values are spread evenly: over all rows, if they suffice."""
    return {
        spec.name: smallest_form(
            num_rows=spec.num_embeddings,
            width=spec.embedding_dim,
            num_kept=min(spec.num_embeddings, counts[spec.name]),
            num_values=counts[spec.name],
        )
        for spec in specs
    }


def _spread(spec: TableSpec, count: int, device: torch.device | None = None) -> Tensor:
    """Return the mask (n, D) of `count` values at equal distances."""
    mask = torch.zeros(_size(spec), dtype=torch.bool, device=device)
    if not mask.is_meta:
        mask[torch.arange(count, device=device) * _size(spec) // count] = True
    return mask.view(spec.num_embeddings, spec.embedding_dim)
