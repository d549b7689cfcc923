"""AutoSrh (DNIS): a gate for each dimension of each frequency group, learned on validation data.

    e = alpha[g(i)] * v_i

where g(i) is the group of ids that occur about as often as i. A warm-up trains with gates of 1; a
search trains vectors on training batches and gates on validation batches, in turn; then values are
pruned by |alpha v| and what is left is trained again.

A step of the gates is SGD on the validation loss + l1 sum |alpha|, the gradient of each group
divided by its mean magnitude, or frequent groups alone would move; gates stay in [0, 1].

Source: Kong, Cheng, Yan et al., "AutoSrh: An Embedding Dimensionality Search Framework for Tabular
Data Prediction", TKDE 2023; Cheng, Shen, Huang, "Differentiable Neural Input Search for Recommender
Systems", 2020, arXiv 2006.04466, and the authors' code (first-order gradients). In the search the
network stands still, as in the authors' code. Departures: groups are of about equal numbers of ids,
which keeps to no data set's boundaries; first-order weights, which have no gates, are pruned by
magnitude in the same share; the pruned tables keep their values and are trained under the mask.

Shapes: `N` rows that were read, `R` rows of a group of tables' buffer, `D` its width, `G` groups.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from recemb.data.batch import Batch
from recemb.methods.pruned import NEVER_STOP, PrunedTables, PruningMethod, table_options
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.method import Context, IdCounts
from recemb.tables.recipe import Recipe, Step, Updates
from recemb.tables.spec import TableSpec
from recemb.tables.transform import RowTransform

Order = Literal["prune_retrain", "retrain_prune"]

_SMALL = 1e-8
"""Added to the mean magnitude of a group's gradient, as in the authors' code."""


class Gates(RowTransform):
    """Multiplies rows by the gates of their groups.

    Attributes:
        alpha: (G, D), 1 at first; without gradients until the search.
        groups: (R,) uint8, the group of each row.

    Args:
        group: the tables.
        groups: (n,), the group of each row of a table, by its name.
        num_groups: G.
    """

    groups: Tensor

    def __init__(self, group: Group, groups: Mapping[str, Tensor], num_groups: int) -> None:
        super().__init__(group)
        self.alpha = nn.Parameter(torch.ones(num_groups, group.width), requires_grad=False)
        self.register_buffer("groups", torch.cat([groups[t.name] for t in group.tables]))

    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the vectors (N, D), gated."""
        return vectors * self.alpha[self.groups[rows.clamp(min=0).long()].long()]

    def dense_parameters(self) -> list[nn.Parameter]:
        """Return nothing: gates have steps of their own."""
        return []


class AutoSrh(PruningMethod):
    """Warm-up, search of gates, retraining of what the budget holds.

    The gates need validation batches, so that the score of the search is not an unseen one.

    Args:
        num_groups: G, from 1 to 256.
        warmup_epochs: at most; None for the trainer's.
        search_epochs: at most; None for the trainer's.
        learning_rate: of the gates.
        l1: weight of the gates' sum in their loss.
        freeze_model: whether the network stands still in the search.
        order: "prune_retrain" prunes, then trains what is left, as the paper does; "retrain_prune"
            trains under the gates and prunes in the end, without any training after it.
        init_std: see `PruningMethod`.

    Raises:
        ValueError: on an unknown word or a number out of its range.
    """

    stages = ("warmup", "search", "retrain")
    why_unshared = "the values that stay are ranked over all rows, which no process has"

    def __init__(
        self,
        *,
        num_groups: int = 6,
        warmup_epochs: int | None = None,
        search_epochs: int | None = None,
        learning_rate: float = 1e-2,
        l1: float = 1e-5,
        freeze_model: bool = True,
        order: Order = "prune_retrain",
        init_std: float | None = None,
    ) -> None:
        super().__init__(init_std=init_std)
        if not 1 <= num_groups <= 256:
            raise ValueError(f"AutoSrh: num_groups must be from 1 to 256, got {num_groups}")
        for name, epochs in (("warmup_epochs", warmup_epochs), ("search_epochs", search_epochs)):
            if epochs is not None and epochs < 1:
                raise ValueError(f"AutoSrh: {name} must be at least 1 or null, got {epochs}")
        if learning_rate < 0 or l1 < 0:
            raise ValueError(
                f"AutoSrh: learning_rate and l1 must not be negative, got {learning_rate} and {l1}"
            )
        if order not in ("prune_retrain", "retrain_prune"):
            raise ValueError(
                f"AutoSrh: order must be prune_retrain or retrain_prune, got '{order}'"
            )
        self.num_groups = num_groups
        self.warmup_epochs = warmup_epochs
        self.search_epochs = search_epochs
        self.learning_rate = learning_rate
        self.l1 = l1
        self.freeze_model = freeze_model
        self.order: Order = order

    def run(self, ctx: Context) -> PrunedTables:
        """Return pruned tables."""
        self.feasible_plan(ctx.specs, ctx.id_counts, ctx.budget)
        gated = self.gated(ctx)
        ctx.fit(gated, stage="warmup", recipe=Recipe(max_epochs=self.warmup_epochs))
        search = Recipe(
            model="keep",
            step=self._step(gated),
            max_epochs=self.search_epochs,
            patience=NEVER_STOP,
        )
        ctx.fit(gated, stage="search", recipe=search)
        if self.order == "retrain_prune":
            ctx.fit(gated, stage="retrain", recipe=Recipe(model="keep"))
            return self.pruned(gated, ctx)
        tables = self.pruned(gated, ctx)
        ctx.fit(tables, stage="retrain", recipe=Recipe(model="keep"))
        return tables

    def gated(self, ctx: Context) -> PrunedTables:
        """Return untrained tables with gates of 1."""
        groups = frequency_groups(ctx.specs, ctx.id_counts, self.num_groups)

        def gates(group: Group) -> Gates | None:
            return None if group.width == 1 else Gates(group, groups, self.num_groups)

        initial = self.initial(ctx.specs)
        return PrunedTables(ctx.specs, transform=gates, initial=initial, **table_options(ctx))

    def pruned(self, gated: PrunedTables, ctx: Context) -> PrunedTables:
        """Return tables with the gates multiplied in, masked down to the budget."""
        ranking = gated.ranking()
        cut = self.cut(ranking, ctx)
        initial: dict[str, Initial | Tensor] = {
            spec.name: gated.served(spec.name) for spec in ctx.specs
        }
        masks = {spec.name: ranking.kept(spec.name, cut) for spec in ctx.specs}
        return PrunedTables(ctx.specs, masks=masks, initial=initial, **table_options(ctx))

    def _step(self, tables: PrunedTables) -> Step:
        gates = [t.alpha for t in tables.transforms.all() if isinstance(t, Gates)]

        def step(updates: Updates, batches: Sequence[Batch]) -> float:
            loss = _update_rows(tables, updates, batches) if self.freeze_model else None
            if loss is None:
                loss = updates.update(batches)
            self.step_gates(tables, gates, updates)
            return loss

        return step

    def step_gates(
        self, tables: PrunedTables, gates: Sequence[nn.Parameter], updates: Updates
    ) -> None:
        """Move the gates by the gradient of the next validation batch."""
        for alpha in gates:
            alpha.requires_grad_(True)
        with tables.hold_rows():
            loss = updates.loss(updates.next_validation_batch())
        penalty = sum((alpha.abs().sum() for alpha in gates), start=torch.zeros_like(loss))
        grads = torch.autograd.grad(loss + self.l1 * penalty, gates)
        for alpha, grad in zip(gates, grads, strict=True):
            alpha.requires_grad_(False)
            normal = grad / (grad.abs().mean(dim=1, keepdim=True) + _SMALL)
            alpha.sub_(self.learning_rate * normal).clamp_(0, 1)


def frequency_groups(
    specs: Sequence[TableSpec], stats: IdCounts, num_groups: int
) -> dict[str, Tensor]:
    """Return the group (n,) uint8 of each id of the tables of vectors, the most frequent being 0.

    The ids of all tables are put in the order of their counts and cut into groups of about equal
    size; ids that occur equally often are in one group, so that some may be empty.

    Args:
        specs: the tables; those of width 1 are left out.
        stats: how often the training split has each id, by feature.
        num_groups: how many, at most 256.
    """
    wide = [spec for spec in specs if spec.embedding_dim > 1]
    if not wide:
        return {}
    counts = [torch.stack([stats[f] for f in spec.feature_names]).sum(dim=0) for spec in wide]
    joined = torch.cat(counts)
    _, places, sizes = torch.unique(joined, return_inverse=True, return_counts=True)
    more_frequent = joined.numel() - sizes.cumsum(0)
    group = (more_frequent * num_groups // joined.numel())[places].to(torch.uint8)
    parts = torch.split(group, [its.numel() for its in counts])
    return {spec.name: part for spec, part in zip(wide, parts, strict=True)}


def _update_rows(tables: PrunedTables, updates: Updates, batches: Sequence[Batch]) -> float:
    """Update the rows alone, once, from the gradients of all batches; return the mean loss."""
    num_examples = sum(len(batch) for batch in batches)
    total = 0.0
    for position, batch in enumerate(batches):
        tables.defer_updates(position < len(batches) - 1)
        loss = updates.loss(batch) * (len(batch) / num_examples)
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return total
