"""CERP: two rows are added, and soft thresholds that are learned switch values of both off.

    e(i) = S(P)[i mod b] + S(Q)[i // c],   S(v) = sign(v) relu(|v| - sigmoid(s)),   c = ceil(n / b)

The search learns rows and thresholds with the penalty - gamma ||tanh(eta (p + q))||^2 on the sums
that a batch reads, so that where one row loses a value the other keeps its own; gamma falls after
every evaluation. When as few values are left as the budget holds, they are trained again from their
initial weights, under the mask found.

Source: Liang et al., "Learning Compact Compositional Embeddings via Regularized Pruning for
Recommendation", ICDM 2023, and the authors' code as our survey describes it. Departures: gamma,
which the authors give for sums over whole tables, weighs the distinct sums of a batch, whose
gradients reach the rows as well; b follows from the budget; thresholds begin at -15, not -100,
where no gradient is left in float32 (see `recemb.methods.pep`); the mask is made of the values with
the largest margins, as many as the budget holds; first-order weights have no thresholds and are
masked by magnitude in the same share.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.methods.cerp_tables import Buckets, CerpTables, ComposedThreshold
from recemb.methods.pep import SoftThresholds
from recemb.methods.pruned import (
    NEVER_STOP,
    PruningMethod,
    allowed_bytes,
    table_options,
    warn_of_early_end,
)
from recemb.methods.ranking import Ranking
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.method import Budget, Context, IdCounts, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.recipe import Recipe, Updates
from recemb.tables.spec import TableSpec, refuse_any_id

_STEPS = 1 << 16
"""Rows are one in so many steps of a table's ids."""


class Cerp(PruningMethod):
    """A search with soft thresholds over summed rows, then training under the mask it found.

    The rows of P and Q take budget / density bytes before pruning, so that about `density` of their
    values can stay; the sparse form keeps the budget to a byte. Without a budget a table has half
    as many rows as ids, of whose values the search may prune what it likes.

    Args:
        density: see above.
        exact_below: tables of at most so many ids have a row for each of them; it may be pruned.
        thresholds: fields of `SoftThresholds`.
        gamma: weight of the penalty, at first.
        gamma_decay: its factor after every evaluation.
        eta: the penalty's slope.
        search_epochs: the most epochs of the search; None for the trainer's.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.

    Raises:
        ValueError: on a number out of its range.
    """

    stages = ("search", "retrain")
    why_unshared = "the values that stay are ranked over all rows, which no process has"

    def __init__(
        self,
        *,
        density: float = 0.5,
        exact_below: int = 100,
        thresholds: Mapping[str, Any] | None = None,
        gamma: float = 1e-4,
        gamma_decay: float = 0.5,
        eta: float = 100.0,
        search_epochs: int | None = None,
        init_std: float | None = None,
    ) -> None:
        super().__init__(init_std=init_std)
        if not 0 < density <= 1:
            raise ValueError(f"CERP: density must be in (0, 1], got {density}")
        if gamma < 0 or not 0 <= gamma_decay <= 1:
            raise ValueError(
                "CERP: gamma must not be negative and gamma_decay in [0, 1], got "
                f"{gamma} and {gamma_decay}"
            )
        if search_epochs is not None and search_epochs < 1:
            raise ValueError(f"CERP: search_epochs must be at least 1 or null, got {search_epochs}")
        self.density = density
        self.exact_below = exact_below
        self.thresholds = SoftThresholds(**(thresholds or {}))
        self.gamma = gamma
        self.gamma_decay = gamma_decay
        self.eta = eta
        self.search_epochs = search_epochs

    def buckets(self, specs: Sequence[TableSpec], budget: Budget | None) -> list[Buckets]:
        """Return how tables are composed: of the most rows that budget / density holds."""
        allowed = allowed_bytes(specs, budget)
        if allowed is None:
            return self._of_size(specs, _STEPS // 2)
        low, high = 0, _STEPS
        while low < high:
            middle = (low + high + 1) // 2
            parts = _parts(self._of_size(specs, middle))
            if sum(part.full_bytes for part in parts) <= allowed / self.density:
                low = middle
            else:
                high = middle - 1
        return self._of_size(specs, low)

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return the sparse form of the most values within `budget`; see `PruningMethod`."""
        refuse_any_id(specs, "CERP")
        buckets = self.buckets(specs, budget)
        tables = self._spread(specs, buckets, budget, None, 0, torch.device("meta"))
        storage = tables.storage()
        parameters = {
            "buckets": {its.spec.name: its.modulus for its in buckets},
            "values": self._values(buckets, specs, budget),
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
    ) -> CerpTables:
        """Return untrained tables under masks spread evenly, which stay as they are.

        Raises:
            ValueError: if the budget is below one value for each physical table.
        """
        self.feasible_plan(specs, stats, budget)
        return self._spread(specs, self.buckets(specs, budget), budget, optimizer, seed, device)

    def run(self, ctx: Context) -> CerpTables:
        """Return tables that were trained under the mask."""
        self.feasible_plan(ctx.specs, ctx.id_counts, ctx.budget)
        buckets = self.buckets(ctx.specs, ctx.budget)
        initial = self._initial(buckets)
        options = table_options(ctx)

        def soft(group: Group) -> ComposedThreshold | None:
            return None if group.width == 1 else self._soft(group, buckets)

        search = CerpTables(ctx.specs, buckets, transform=soft, initial=initial, **options)
        first = {p.name: search.table(p.name).detach().clone() for p in search.parts}
        ctx.fit(search, stage="search", recipe=self._search(search, ctx))
        masks = self.masks(search, allowed_bytes(ctx.specs, ctx.budget))
        tables = CerpTables(ctx.specs, buckets, masks=masks, initial=first, **options)
        ctx.fit(tables, stage="retrain")
        return tables

    def masks(self, search: CerpTables, allowed: int | None) -> dict[str, Tensor]:
        """Return which values (n, D) of the physical tables stay, as many as the bytes hold."""
        scores = search.margins()
        if allowed is None:
            names = [t.name for soft in search.thresholds() for t in soft.group.tables]
            return {name: scores[name] > 0 for name in names}
        ranking = Ranking(scores)
        cut = ranking.within(allowed)
        if not is_reached(search, allowed):
            warn_of_early_end(type(self).__name__, cut)
        return {name: ranking.kept(name, cut) for name in scores}

    def _search(self, search: CerpTables, ctx: Context) -> Recipe:
        adam = torch.optim.Adam(
            [soft.s for soft in search.thresholds()],
            lr=self.thresholds.learning_rate,
            weight_decay=self.thresholds.weight_decay,
        )
        allowed = allowed_bytes(ctx.specs, ctx.budget)

        def step(updates: Updates, batches: Sequence[Batch]) -> float:
            adam.zero_grad()
            loss = updates.update(batches)
            adam.step()
            return loss

        def lower_gamma() -> None:
            for soft in search.thresholds():
                soft.gamma *= self.gamma_decay

        return Recipe(
            step=step,
            before_evaluation=lower_gamma,
            stop_when=lambda: allowed is not None and is_reached(search, allowed),
            take="last",
            max_epochs=self.search_epochs,
            patience=NEVER_STOP,
            extra={"thresholds": adam},
        )

    def _soft(self, group: Group, buckets: Sequence[Buckets]) -> ComposedThreshold:
        pairs = [(its.parts[0].name, its.parts[1].name) for its in buckets if its.modulus]
        return ComposedThreshold(
            group, self.thresholds, pairs=pairs, gamma=self.gamma, eta=self.eta
        )

    def _of_size(self, specs: Sequence[TableSpec], size: int) -> list[Buckets]:
        """Return how tables are composed that have size / _STEPS rows for each id."""
        found = []
        for spec in specs:
            num = spec.num_embeddings
            least = math.isqrt(num - 1) + 1
            its = Buckets(spec=spec, modulus=max(least, num * size // (2 * _STEPS)))
            num_rows = sum(part.num_embeddings for part in its.parts)
            if num <= self.exact_below or num_rows >= num:
                its = Buckets(spec=spec, modulus=0)
            found.append(its)
        return found

    def _values(
        self, buckets: Sequence[Buckets], specs: Sequence[TableSpec], budget: Budget | None
    ) -> dict[str, int]:
        """Return the number of values of each physical table, the same share of all."""
        allowed = allowed_bytes(specs, budget)
        inner = None if allowed is None else Budget(num_bytes=max(1, allowed))
        return self._counts(_parts(buckets), inner)

    def _spread(
        self,
        specs: Sequence[TableSpec],
        buckets: Sequence[Buckets],
        budget: Budget | None,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> CerpTables:
        """Return tables under masks whose values lie at equal distances."""
        counts = self._values(buckets, specs, budget)
        masks = {}
        for part in _parts(buckets):
            mask = torch.zeros(part.num_embeddings * part.embedding_dim, dtype=torch.bool)
            count = counts[part.name]
            if count < mask.numel():
                mask[torch.arange(count) * mask.numel() // count] = True
                masks[part.name] = mask.view(-1, part.embedding_dim)
        return CerpTables(
            specs,
            buckets,
            masks=masks,
            initial=self._initial(buckets),
            counts=counts,
            optimizer=optimizer,
            seed=seed,
            device=device,
        )

    def _initial(self, buckets: Sequence[Buckets]) -> dict[str, Initial | Tensor]:
        """Return how physical tables are drawn, so that sums have the deviation asked for."""
        found: dict[str, Initial | Tensor] = {}
        for its in buckets:
            std = self.init_std
            std = Initial.dlrm(its.spec.num_embeddings).std if std is None else std
            spread = std * math.sqrt(3 / len(its.parts))
            rule = Initial(distribution="uniform", spread=spread)
            found |= {part.name: rule for part in its.parts}
        return found


def is_reached(search: CerpTables, allowed: int) -> bool:
    """Return whether the values above their thresholds are no more than the bytes hold."""
    cuts = Ranking(search.margins()).within(allowed).thresholds
    return all(cuts[t.name] <= 0 for soft in search.thresholds() for t in soft.group.tables)


def _parts(buckets: Sequence[Buckets]) -> list[TableSpec]:
    return [part for its in buckets for part in its.parts]
