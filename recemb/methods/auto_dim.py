"""AutoDim: a width for each field, found by gradients on validation batches.

Two stages. The search mixes all candidate widths of a field, see `CandidateWidths`; its weights
learn on training batches, and the fields' preferences alpha on validation batches, in turn. Then
every field takes the width it prefers most, and tables of those widths, with a matrix each to the
models' width, are trained from the beginning.

Source: Zhao et al., "AutoDim: Field-aware Embedding Dimension Search in Recommender Systems", WWW
2021, arXiv 2006.14827; first-order gradients, as in the VLDB 2024 study. Departures: a budget, of
which the paper knows nothing, is kept by choosing widths of the largest sum of log preferences
within it; where a matrix costs more than it saves, and at the full width, there is none; matrices
have no bias.
"""

from collections.abc import Sequence
from functools import partial

import torch

from recemb.data.batch import Batch
from recemb.methods.candidate_widths import CandidateWidths, best_widths
from recemb.methods.low_dimension import mixed_dimension, mixed_width
from recemb.methods.pruned import NEVER_STOP
from recemb.tables.blueprint import Blueprint
from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.method import Budget, Context, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.recipe import Recipe, Step, Updates
from recemb.tables.spec import TableSpec, refuse_any_id
from recemb.tables.storage import Storage
from recemb.tables.tables import Tables

_COLDEST = 0.01


class AutoDim(Method):
    """Search, then retraining at the widths found. First-order tables stay as they are.

    `plan` and `build` know nothing of training: they give all fields the largest candidate that the
    budget allows. A budget is one of serving; the search holds full tables and some matrices.

    Args:
        candidates: widths to choose from, the tables' own being added; None for powers of two from
            2 on.
        search_epochs: None for the trainer's.
        learning_rate: of plain SGD on alpha.
        temperature_decay: what an example of training takes from the temperature, which begins at
            1 and ends at 0.01; None for what ends there with the search. The paper's is 2.5e-8.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.

    Raises:
        ValueError: on a number out of its range.
    """

    stages = ("search", "retrain")

    def __init__(
        self,
        *,
        candidates: Sequence[int] | None = None,
        search_epochs: int | None = None,
        learning_rate: float = 1e-3,
        temperature_decay: float | None = None,
        init_std: float | None = None,
    ) -> None:
        if candidates is not None and (not candidates or min(candidates) < 1):
            raise ValueError(
                f"AutoDim: candidates must be widths of at least 1 or null, got {list(candidates)}"
            )
        if search_epochs is not None and search_epochs < 1:
            raise ValueError(
                f"AutoDim: search_epochs must be at least 1 or null, got {search_epochs}"
            )
        if learning_rate < 0 or (temperature_decay is not None and temperature_decay < 0):
            raise ValueError(
                "AutoDim: learning_rate and temperature_decay must not be negative, got "
                f"{learning_rate} and {temperature_decay}"
            )
        self.candidates = candidates
        self.search_epochs = search_epochs
        self.learning_rate = learning_rate
        self.temperature_decay = temperature_decay
        self.init_std = init_std

    def widths(self, width: int) -> list[int]:
        """Return the candidates for tables of a width, rising, that width being the last."""
        if self.candidates is None:
            found = [1 << power for power in range(1, width.bit_length()) if 1 << power < width]
        else:
            found = sorted({d for d in self.candidates if d < width})
        return [*found, width]

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return the tables of the largest candidate that the budget allows; see `Method`."""
        refuse_any_id(specs, "AutoDim")
        made = self._uniform(specs, budget)
        device = torch.device("meta")
        tables = made.tables(specs, optimizer=None, seed=0, device=device)
        search = self.search_tables(specs, optimizer=None, seed=0, device=device)
        storage = Storage(
            full_bytes=tables.storage().full_bytes,
            serve=tables.storage().serve,
            train=search.storage().train,
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
    ) -> PlannedTables:
        """Return untrained tables of one width; see `Method`.

        Raises:
            ValueError: if the budget is below the smallest candidate.
        """
        self.feasible_plan(specs, stats, budget)
        made = self._uniform(specs, budget)
        return made.tables(specs, optimizer=optimizer, seed=seed, device=device)

    def run(self, ctx: Context) -> Tables:
        """Return tables that were trained at the widths found."""
        self.feasible_plan(ctx.specs, ctx.id_counts, ctx.budget)
        made = mixed_dimension(ctx.specs, self._searched(ctx), init_std=self.init_std)
        tables = ctx.shared(partial(made.tables, ctx.specs, optimizer=ctx.optimizer, seed=ctx.seed))
        ctx.fit(tables, stage="retrain")
        return tables

    def _searched(self, ctx: Context) -> dict[str, int]:
        """Return the widths found; the tables of the search are gone when others are trained."""
        search = self.search_tables(
            ctx.specs, optimizer=ctx.optimizer, seed=ctx.seed, device=ctx.device
        )
        recipe = Recipe(
            step=self.step(search),
            take="last",
            max_epochs=self.search_epochs,
            patience=NEVER_STOP,
        )
        ctx.fit(search, stage="search", recipe=recipe)
        return self.found(search, ctx.budget)

    def shared_stages(self) -> Sequence[str]:
        """Return the last one: widths are known before it."""
        return self.stages[-1:]

    def search_tables(
        self,
        specs: Sequence[TableSpec],
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> PlannedTables:
        """Return full tables whose vectors are mixed from all candidates."""

        def mixed(group: Group) -> CandidateWidths | None:
            widths = self.widths(group.width)
            return CandidateWidths(group, widths, seed=seed) if len(widths) > 1 else None

        initial = {}
        if self.init_std is not None:
            rule = Initial(distribution="uniform", spread=self.init_std * 3**0.5)
            initial = {spec.name: rule for spec in specs}
        return PlannedTables(
            specs,
            full_plan(specs),
            optimizer=optimizer,
            transform=mixed,
            initial=initial,
            seed=seed,
            device=device,
        )

    def step(self, search: PlannedTables) -> Step:
        """Return the step that moves alpha by a validation batch, then weights by training ones."""
        mixes = mixes_of(search)

        def step(updates: Updates, batches: Sequence[Batch]) -> float:
            self._cool(mixes, updates, batches)
            self.step_alpha(search, updates)
            return updates.update(batches)

        return step

    def step_alpha(self, search: PlannedTables, updates: Updates) -> None:
        """Move alpha by the gradient of the next validation batch."""
        mixes = mixes_of(search)
        alphas = [mix.alpha for mix in mixes]
        _hold_statistics(mixes, True)
        for alpha in alphas:
            alpha.requires_grad_(True)
        with search.hold_rows():
            loss = updates.loss(updates.next_validation_batch())
        grads = torch.autograd.grad(loss, alphas)
        for alpha, grad in zip(alphas, grads, strict=True):
            alpha.requires_grad_(False)
            alpha.sub_(self.learning_rate * grad)
        _hold_statistics(mixes, False)

    def found(self, search: PlannedTables, budget: Budget | None) -> dict[str, int]:
        """Return the width of each table that the search prefers, within the budget."""
        specs = search.specs
        allowed = None
        if budget is not None and budget.of == "serve":
            allowed = budget.allowed_bytes(specs)
        preferences: dict[str, list[float]] = {}
        costs: dict[str, list[int]] = {}
        for mix in mixes_of(search):
            preferences |= {name: its.tolist() for name, its in mix.preferences().items()}
        for spec in specs:
            if spec.name in preferences:
                costs[spec.name] = [_bytes(spec, d) for d in self.widths(spec.embedding_dim)]
            elif allowed is not None:
                allowed -= spec.full_bytes
        chosen = best_widths(preferences, costs, allowed)
        return {
            spec.name: mixed_width(spec, self.widths(spec.embedding_dim)[chosen[spec.name]])
            if spec.name in chosen
            else spec.embedding_dim
            for spec in specs
        }

    def _cool(
        self, mixes: Sequence[CandidateWidths], updates: Updates, batches: Sequence[Batch]
    ) -> None:
        """Set the temperature for this update, whose batches are about as large as all others."""
        if self.temperature_decay is None:
            share = updates.step / max(1, updates.total_steps - 1)
            temperature = 1 - (1 - _COLDEST) * share
        else:
            num_examples = updates.step * sum(len(batch) for batch in batches)
            temperature = 1 - self.temperature_decay * num_examples
        for mix in mixes:
            mix.temperature.fill_(max(_COLDEST, temperature))

    def _uniform(self, specs: Sequence[TableSpec], budget: Budget | None) -> Blueprint:
        """Return the blueprint of the largest candidate of all tables within the budget."""
        most = max(len(self.widths(spec.embedding_dim)) for spec in specs)
        for below in range(most):
            widths = {spec.name: self._width(spec, below) for spec in specs}
            made = mixed_dimension(specs, widths, init_std=self.init_std)
            if budget is None or made.serve_bytes <= budget.allowed_bytes(specs):
                break
        return made

    def _width(self, spec: TableSpec, below: int) -> int:
        """Return the candidate that is `below` places below the largest, or the smallest."""
        found = self.widths(spec.embedding_dim)
        return mixed_width(spec, found[max(0, len(found) - 1 - below)])


def mixes_of(tables: PlannedTables) -> list[CandidateWidths]:
    """Return the mixtures of candidates, group by group."""
    return [t for t in tables.transforms.all() if isinstance(t, CandidateWidths)]


def _hold_statistics(mixes: Sequence[CandidateWidths], flag: bool) -> None:
    for mix in mixes:
        mix.keeps_statistics = not flag


def _bytes(spec: TableSpec, d: int) -> int:
    """Return the bytes of a table of width d with its matrix, if it has one."""
    width = mixed_width(spec, d)
    matrix = width * spec.embedding_dim if width != spec.embedding_dim else 0
    return 4 * (spec.num_embeddings * width + matrix)
