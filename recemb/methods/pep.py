"""PEP: soft thresholds that are learned with the vectors, then training anew under the mask found.

    e = sign(v) relu(|v| - sigmoid(s))

A value below its threshold is zero, and gets no gradient. The search goes on until as many values
are zero as the budget asks for; the values that are left are then trained again from their initial
weights, the rest being masked for good.

WHAT MOVES THRESHOLDS: at s = -15 the derivative of the sigmoid is 3e-7, so that in the beginning it
is weight decay, which Adam turns into steps of the learning rate, that raises s: from -15 to -5
takes 10,000 updates at a learning rate of 0.001. The authors' code begins at -150; there the
derivative is 0 in float32, and without weight decay nothing would ever be pruned. Later the loss
pulls the thresholds of values that matter down again, against the decay. Short runs need a larger
learning rate or a larger s at first; small batches, whose gradients are larger, more weight decay.

Source: Liu et al., "Learnable Embedding Sizes for Recommender Systems", ICLR 2021, arXiv
2101.07577, section 3, and the authors' code. Departures: the mask is made of the values with the
largest margins |v| - sigmoid(s), as many as the budget holds, which is the paper's mask if the
search ends at the budget, and fills it up if the last epoch went further; first-order weights,
which the paper leaves alone, are masked by magnitude in the same share.

Shapes: `N` rows that were read, `R` rows of a group's buffer, `D` its width, `T` its tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from recemb.data.batch import Batch
from recemb.methods.pruned import (
    NEVER_STOP,
    PrunedTables,
    PruningMethod,
    allowed_bytes,
    table_options,
    warn_of_early_end,
)
from recemb.methods.ranking import Ranking, magnitudes
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.method import Context
from recemb.tables.recipe import Recipe, Updates
from recemb.tables.transform import RowTransform

Scope = Literal["global", "dimension", "field", "field_dimension", "feature", "feature_dimension"]
"""What has a threshold of its own; the paper's "feature" is an id."""


@dataclass(frozen=True, kw_only=True)
class SoftThresholds:
    """Of what kind thresholds are, and how they are trained: by Adam.

    Attributes:
        scope: what has one.
        initial: s at first.
        learning_rate: of Adam.
        weight_decay: of Adam, as L2.

    Raises:
        ValueError: on an unknown word or a negative number.
    """

    scope: Scope = "feature_dimension"
    initial: float = -15.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise ValueError(
                f"SoftThresholds: scope must be one of {', '.join(get_args(Scope))}, got "
                f"'{self.scope}'"
            )
        if self.learning_rate < 0 or self.weight_decay < 0:
            raise ValueError(
                "SoftThresholds: learning_rate and weight_decay must not be negative, got "
                f"{self.learning_rate} and {self.weight_decay}"
            )


class SoftThreshold(RowTransform):
    """Shrinks values by their thresholds.

    Attributes:
        s: (1, T or R, 1 or D) by scope, without the first dimension.

    Args:
        group: the tables.
        settings: of the thresholds.
    """

    def __init__(self, group: Group, settings: SoftThresholds) -> None:
        super().__init__(group)
        self.settings = settings
        scope = settings.scope
        num = {"feature": group.num_rows, "field": len(group.tables)}.get(scope.split("_")[0], 1)
        width = group.width if scope.endswith("dimension") else 1
        self.s = nn.Parameter(torch.full((num, width), settings.initial))

    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the vectors (N, D), shrunk."""
        return vectors.sign() * torch.relu(vectors.abs() - self.thresholds(rows, tables))

    def thresholds(self, rows: Tensor, tables: Tensor) -> Tensor:
        """Return sigmoid(s) of rows of the buffer, (N or 1, D or 1)."""
        if self.settings.scope.startswith("feature"):
            return torch.sigmoid(self.s[rows.clamp(min=0).long()])
        if self.settings.scope.startswith("field"):
            return torch.sigmoid(self.s[tables])
        return torch.sigmoid(self.s)

    def dense_parameters(self) -> list[nn.Parameter]:
        """Return nothing: thresholds have an optimizer of their own."""
        return []


class PEP(PruningMethod):
    """A search with soft thresholds, then training under the mask it found.

    The search ends after the first evaluation at which the values above their thresholds keep the
    budget, or after its last epoch; then the values with the largest margins stay, as many as the
    budget holds, and a warning says so. Without a budget the mask is what the last epoch leaves.

    Memory in the search: thresholds of scope "feature_dimension" are as large as the tables, and
    Adam's state of them twice that; every update visits all of them.

    Args:
        thresholds: fields of `SoftThresholds`.
        search_epochs: the most epochs of the search; None for the trainer's.
        retrain_from: "init", the initial weights of the search, or "fresh", others.
        init_std: see `PruningMethod`.

    Raises:
        ValueError: on an unknown word or a number out of its range.
    """

    stages = ("search", "retrain")
    why_unshared = (
        "thresholds are as large as the tables, and the values that stay are ranked over all"
    )

    def __init__(
        self,
        *,
        thresholds: Mapping[str, Any] | None = None,
        search_epochs: int | None = None,
        retrain_from: Literal["init", "fresh"] = "init",
        init_std: float | None = None,
    ) -> None:
        super().__init__(init_std=init_std)
        if retrain_from not in ("init", "fresh"):
            raise ValueError(f"PEP: retrain_from must be init or fresh, got '{retrain_from}'")
        if search_epochs is not None and search_epochs < 1:
            raise ValueError(f"PEP: search_epochs must be at least 1 or null, got {search_epochs}")
        self.thresholds = SoftThresholds(**(thresholds or {}))
        self.search_epochs = search_epochs
        self.retrain_from = retrain_from

    def run(self, ctx: Context) -> PrunedTables:
        """Return tables that were trained under the mask."""
        self.feasible_plan(ctx.specs, ctx.id_counts, ctx.budget)
        options = table_options(ctx)
        search = PrunedTables(
            ctx.specs, transform=self._soft, initial=self.initial(ctx.specs), **options
        )
        initial: dict[str, Initial | Tensor] = {
            spec.name: search.table(spec.name).detach().clone() for spec in ctx.specs
        }
        ctx.fit(search, stage="search", recipe=self._search(search, ctx))
        masks = self.masks(search, ctx)
        if self.retrain_from == "fresh":
            initial = self.initial(ctx.specs)
            options["seed"] = ctx.seed + 1
        tables = PrunedTables(ctx.specs, masks=masks, initial=initial, **options)
        ctx.fit(tables, stage="retrain")
        return tables

    def masks(self, search: PrunedTables, ctx: Context) -> dict[str, Tensor]:
        """Return which values (n, D) stay, as many as the budget holds; first-order weights, too.

        Without a budget those above their thresholds, and all first-order weights.
        """
        scores = _margins(search)
        allowed = allowed_bytes(ctx.specs, ctx.budget)
        if allowed is None:
            return {name: scores[name] > 0 for name in _thresholded(search)}
        ranking = Ranking(scores)
        cut = ranking.within(allowed)
        if not _is_reached(search, cut.thresholds):
            warn_of_early_end(type(self).__name__, cut)
        return {name: ranking.kept(name, cut) for name in scores}

    def _search(self, search: PrunedTables, ctx: Context) -> Recipe:
        parameters = [t.s for t in search.transforms.all() if isinstance(t, SoftThreshold)]
        adam = torch.optim.Adam(
            parameters,
            lr=self.thresholds.learning_rate,
            weight_decay=self.thresholds.weight_decay,
        )
        allowed = allowed_bytes(ctx.specs, ctx.budget)

        def step(updates: Updates, batches: Sequence[Batch]) -> float:
            adam.zero_grad()
            loss = updates.update(batches)
            adam.step()
            return loss

        def is_reached() -> bool:
            if allowed is None:
                return False
            return _is_reached(search, Ranking(_margins(search)).within(allowed).thresholds)

        return Recipe(
            step=step,
            stop_when=is_reached,
            take="last",
            max_epochs=self.search_epochs,
            patience=NEVER_STOP,
            extra={"thresholds": adam},
        )

    def _soft(self, group: Group) -> SoftThreshold | None:
        return None if group.width == 1 else SoftThreshold(group, self.thresholds)


def _thresholded(search: PrunedTables) -> list[str]:
    return [t.name for its in search.transforms.all() for t in its.group.tables]


def _is_reached(search: PrunedTables, cuts: Mapping[str, float]) -> bool:
    """Return whether all values above their thresholds are within cuts of the margins."""
    return all(cuts[name] <= 0 for name in _thresholded(search))


@torch.no_grad()
def _margins(search: PrunedTables) -> dict[str, Tensor]:
    """Return |v| - sigmoid(s) of tables (n, D) that have thresholds, |v| of the others."""
    scores = {spec.name: magnitudes(search.table(spec.name).detach()) for spec in search.specs}
    for transform in search.transforms.all():
        assert isinstance(transform, SoftThreshold)
        group = transform.group
        for place, table in enumerate(group.tables):
            device = scores[table.name].device
            rows = torch.arange(table.num_rows, device=device) + group.first_rows[place]
            scores[table.name] -= transform.thresholds(rows, torch.full_like(rows, place))
    return scores
