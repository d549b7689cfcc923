"""MPE: bits for each frequency group of ids, learned by gates, then vectors trained in those bits.

    search    e = sum over b of p_gb Q_b(w),   p_g = softmax(gates_g / tau)
    loss      + lambda sum over g, b of p_gb b / c_g
    bits      of group g: the largest b with p_gb >= 1 / (2 |B|)
    retrain   e = Q_b(w)

where Q_b rounds to b bits, see `recemb.methods.mixed_precision`, and c_g is how often ids of the
group occur, over that of the rarest group. Retraining begins with the first vectors and keeps the
network, the steps and the offsets of the search.

Source: Li et al., "Mixed-Precision Embeddings for Large-Scale Recommendation Models", 2024, arXiv
2409.20305, and the authors' code. Departures: for the first updates steps are measured, by the
authors' formula, from the rows that are read, and gates stand still, because vectors begin small
and gates decide within some dozen updates; steps are learned as logarithms; ids that occur equally
often are in one group; an id that never occurs counts once; rows of width 1 have 8 bits and a
learned step, see `recemb.methods.lsq`. The paper has no budget: here, where the rule takes too many
bytes, bits are lowered as `learned_layout` says.

Shapes: `n` rows of a table, `D` its width, `G` frequency groups, `C` numbers of bits, `R` rows of a
group of tables' buffer.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.methods.auto_srh import frequency_groups
from recemb.methods.lsq import LearnedSteps
from recemb.methods.mixed_bits import (
    NARROW_BITS,
    MixedLayout,
    even_layout,
    id_counts,
    learned_layout,
)
from recemb.methods.mixed_precision import FixedPrecision, MixedPrecision, SearchedPrecision
from recemb.methods.mixed_rows import MixedRows
from recemb.methods.pruned import allowed_bytes, table_options
from recemb.methods.quantised_rows import QuantisedRows
from recemb.tables.computed import ComputedTables
from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.method import Budget, Context, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.recipe import Recipe, Step, Updates
from recemb.tables.row_source import RowSource, merge_bytes
from recemb.tables.spec import TableSpec, refuse_any_id
from recemb.tables.storage import Storage
from recemb.tables.transform import RowTransform


class MPETables(PlannedTables):
    """Float32 tables, each row of which is read in its own number of bits.

    Args:
        specs: the tables.
        layout: the bits of each row.
        initial: how they are drawn, or what they are.
        optimizer: how rows are updated.
        seed: of the initial weights.
        device: where the tables live.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        layout: MixedLayout,
        *,
        initial: Mapping[str, Initial | Tensor],
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> None:
        def precision(group: Group) -> RowTransform:
            if group.width == 1:
                return LearnedSteps(group, NARROW_BITS, has_offset=False)
            return FixedPrecision(group, layout.bits, classes=layout.classes_of(group))

        super().__init__(
            specs,
            full_plan(specs),
            optimizer=optimizer,
            initial=initial,
            transform=precision,
            seed=seed,
            device=device,
        )
        self.layout = layout
        if device.type != "meta":
            begin_steps(self)

    @torch.no_grad()
    def keep_scales(self, tables: PlannedTables) -> None:
        """Take over the steps and offsets of tables for the same specs."""
        for mine, other in zip(self.transforms.all(), tables.transforms.all(), strict=True):
            for name, parameter in mine.named_parameters():
                parameter.copy_(other.get_parameter(name))

    def storage(self) -> Storage:
        """Return the bytes of the bits in serving, and of float32 tables in training."""
        train = super().storage()
        parts = [form.parts() for form in self.layout.forms.values()]
        return Storage(full_bytes=train.full_bytes, serve=merge_bytes(parts), train=train.train)

    def freeze(self) -> ComputedTables:
        """Return the integers, which give bit-equal vectors, packed."""
        sources: dict[str, RowSource] = {}
        source_of: dict[str, str] = {}
        for transform in self.transforms.all():
            group = transform.group
            if isinstance(transform, LearnedSteps):
                sources |= {t.name: self._narrow(transform, t.name) for t in group.tables}
                source_of |= {t.name: t.name for t in group.tables}
            elif isinstance(transform, FixedPrecision):
                sources[group.name] = self._mixed(transform)
                source_of |= {t.name: group.name for t in group.tables}
        return ComputedTables(
            self.specs,
            sources=sources,
            source_of=source_of,
            planned=None,
            bounds=self._bounds.policy,
        ).eval()

    @torch.no_grad()
    def _narrow(self, steps: LearnedSteps, name: str) -> QuantisedRows:
        place = [table.name for table in steps.group.tables].index(name)
        return QuantisedRows.of(
            steps.rows(place, self.table(name).detach()),
            self.layout.narrow[name],
            steps=steps.steps()[place : place + 1],
        )

    @torch.no_grad()
    def _mixed(self, fixed: FixedPrecision) -> MixedRows:
        weight = self.engine.store_of(fixed.group.tables[0].name).weight.detach()
        return MixedRows.of(
            fixed.integers(weight),
            fixed.classes,
            self.layout.mixed[fixed.group.name],
            steps=fixed.steps(),
            offsets=fixed.offsets.view(-1),
        )


class MPE(Method):
    """A search for the bits of each frequency group, then training in those bits.

    Without a budget the bits are those that the gates found, which `penalty` decides. A budget
    lowers them, to the last frequency group that must be, and never raises them, so bytes may be
    left over. `plan` and `build`, which know no gates, give all rows the same bits, as many as the
    budget holds.

    Training takes what float32 tables take, twice; in the search a row is rounded in all numbers of
    bits.

    Args:
        bits: the numbers of bits, ascending, from 0 (no vector) to 8.
        num_groups: G, from 1 to 256.
        temperature: tau.
        penalty: lambda.
        measured_steps: updates at first of the search in which steps are measured, and gates stand
            still.
        search_epochs: at most; None for the trainer's.
        init_std: draw the initial weights from N(0, init_std); None draws them uniformly from
            +-1/sqrt(num_embeddings).

    Raises:
        ValueError: on a number out of its range.
    """

    stages = ("search", "retrain")
    why_unshared = "steps are measured over whole tables, and kept with masks as long as those"

    def __init__(
        self,
        *,
        bits: Sequence[int] = (0, 1, 2, 3, 4, 5, 6),
        num_groups: int = 128,
        temperature: float = 3e-3,
        penalty: float = 3e-4,
        measured_steps: int = 100,
        search_epochs: int | None = None,
        init_std: float | None = None,
    ) -> None:
        if not bits or list(bits) != sorted(set(bits)) or not 0 <= bits[0] <= bits[-1] <= 8:
            raise ValueError(f"MPE: bits must be ascending numbers from 0 to 8, got {list(bits)}")
        if not 1 <= num_groups <= 256:
            raise ValueError(f"MPE: num_groups must be from 1 to 256, got {num_groups}")
        if not temperature > 0 or not penalty >= 0 or measured_steps < 0:
            raise ValueError(
                "MPE: temperature must be positive, penalty and measured_steps not negative, got "
                f"{temperature}, {penalty} and {measured_steps}"
            )
        if search_epochs is not None and search_epochs < 1:
            raise ValueError(f"MPE: search_epochs must be at least 1 or null, got {search_epochs}")
        self.bits = tuple(bits)
        self.num_groups = num_groups
        self.temperature = temperature
        self.penalty = penalty
        self.measured_steps = measured_steps
        self.search_epochs = search_epochs
        self.init_std = init_std

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return what `build` would make, allocating no table; see `Method`."""
        refuse_any_id(specs, "MPE")
        layout = even_layout(specs, stats, self.bits, allowed_bytes(specs, budget))
        device = torch.device("meta")
        storage = self._tables(specs, layout, optimizer=None, seed=0, device=device).storage()
        rows = {
            name: {str(bits): num for bits, num in zip(form.bits, form.counts, strict=True) if num}
            for name, form in layout.mixed.items()
        }
        return Plan.of(storage, specs, budget, {"rows_of_bits": rows})

    def build(
        self,
        specs: Sequence[TableSpec],
        stats: IdCounts,
        budget: Budget | None,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> MPETables:
        """Return untrained tables of the bits that `plan` says.

        Raises:
            ValueError: if the budget is below rows without bits.
        """
        self.feasible_plan(specs, stats, budget)
        layout = even_layout(specs, stats, self.bits, allowed_bytes(specs, budget))
        return self._tables(specs, layout, optimizer=optimizer, seed=seed, device=device)

    def run(self, ctx: Context) -> MPETables:
        """Return tables trained in the bits that the search found."""
        self.feasible_plan(ctx.specs, ctx.id_counts, ctx.budget)
        groups = frequency_groups(ctx.specs, ctx.id_counts, self.num_groups)
        search = self.searched(ctx, groups)
        initial: dict[str, Initial | Tensor] = {
            spec.name: search.table(spec.name).detach().clone() for spec in ctx.specs
        }
        ctx.fit(search, stage="search", recipe=self.search_recipe(search))
        tables = MPETables(
            ctx.specs, self.found(search, groups, ctx), initial=initial, **table_options(ctx)
        )
        tables.keep_scales(search)
        ctx.fit(tables, stage="retrain", recipe=Recipe(model="keep"))
        return tables

    def searched(self, ctx: Context, groups: Mapping[str, Tensor]) -> PlannedTables:
        """Return the untrained tables of the search; `groups` are those of `frequency_groups`."""
        counts = {s.name: id_counts(s, ctx.id_counts).clamp(min=1) for s in ctx.specs}

        def precision(group: Group) -> RowTransform:
            if group.width == 1:
                return LearnedSteps(group, NARROW_BITS, has_offset=False)
            its = torch.cat([groups[table.name] for table in group.tables])
            num = torch.cat([counts[table.name] for table in group.tables])
            return SearchedPrecision(
                group,
                self.bits,
                groups=its,
                prices=self.penalty * prices(its, num, self.num_groups),
                temperature=self.temperature,
            )

        tables = PlannedTables(
            ctx.specs,
            full_plan(ctx.specs),
            transform=precision,
            initial=self._initial(ctx.specs),
            **table_options(ctx),
        )
        begin_steps(tables)
        return tables

    def search_recipe(self, search: PlannedTables) -> Recipe:
        """Return how the search is fitted."""
        return Recipe(step=self._step(search), max_epochs=self.search_epochs)

    def found(
        self, search: PlannedTables, groups: Mapping[str, Tensor], ctx: Context
    ) -> MixedLayout:
        """Return the bits that the gates chose, lowered to the budget."""
        probabilities = {
            t.group.name: t.probabilities().detach().cpu()
            for t in search.transforms.all()
            if isinstance(t, SearchedPrecision)
        }
        return learned_layout(
            ctx.specs,
            self.bits,
            groups=groups,
            probabilities=probabilities,
            allowed_bytes=allowed_bytes(ctx.specs, ctx.budget),
        )

    def _step(self, search: PlannedTables) -> Step:
        learned = [t for t in search.transforms.all() if isinstance(t, MEASURED)]

        def step(updates: Updates, batches: Sequence[Batch]) -> float:
            is_measuring = updates.step < self.measured_steps
            for transform in learned:
                transform.is_measuring = is_measuring
                if isinstance(transform, SearchedPrecision):
                    transform.gates.requires_grad_(not is_measuring)
            loss = updates.update(batches)
            if is_measuring:
                for transform in learned:
                    transform.measure()
            return loss

        return step

    def _tables(
        self,
        specs: Sequence[TableSpec],
        layout: MixedLayout,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> MPETables:
        return MPETables(
            specs,
            layout,
            initial=self._initial(specs),
            optimizer=optimizer,
            seed=seed,
            device=device,
        )

    def _initial(self, specs: Sequence[TableSpec]) -> dict[str, Initial | Tensor]:
        if self.init_std is None:
            return {}
        rule = Initial(distribution="normal", spread=self.init_std)
        return {spec.name: rule for spec in specs}


MEASURED = (LearnedSteps, MixedPrecision)


@torch.no_grad()
def begin_steps(tables: PlannedTables) -> None:
    """Set all steps by the weights of the tables."""
    for transform in tables.transforms.all():
        group = transform.group
        if isinstance(transform, LearnedSteps):
            for place, table in enumerate(group.tables):
                transform.begin(place, tables.table(table.name).detach())
        elif isinstance(transform, MixedPrecision):
            weight = tables.engine.store_of(group.tables[0].name).weight
            transform.begin(float(weight.abs().mean()))


def prices(groups: Tensor, counts: Tensor, num_groups: int) -> Tensor:
    """Return 1 / c_g (G,): the rarest group's occurrences over those of each; 0 if it is empty.

    Args:
        groups: (R,) of rows.
        counts: (R,) int64, how often they occur, at least once.
        num_groups: G.
    """
    total = torch.bincount(groups, counts.double(), minlength=num_groups)
    found = total[total > 0].min() / total
    return found.masked_fill(total == 0, 0).float()
