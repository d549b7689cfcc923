"""Several widths of a field at once, mixed by learned chances: AutoDim's search.

    e_i = sum_c p[f, c] BN_c(v_i[:d_c] P[f, c]),   p[f] = softmax((log softmax(alpha[f]) + G) / tau)

where f is the field of id i, d_c the c-th candidate width, BN batch normalisation without weights,
and G Gumbel noise, drawn anew for every forward pass in training, 0 in evaluation.

Shapes: `N` rows that were read, `T` tables of a group, `C` candidates, `D` the group's width.

Source: Zhao et al., "AutoDim: Field-aware Embedding Dimension Search in Recommender Systems", WWW
2021, arXiv 2006.14827, section 2; the candidates share weights, as its section 2.2.2 describes. A
bias before the normalisation, as the paper has it, would change nothing.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recemb.ids.hashing import hash_seed
from recemb.tables.layout import Group
from recemb.tables.transform import RowTransform

_MOMENTUM = 0.1
_GRID = 1 << 16
"""The knapsack's capacity in units: bytes are rounded up to these."""


class CandidateWidths(RowTransform):
    """Mixes the candidate widths of each table of a group.

    Attributes:
        widths: of the candidates, rising.
        alpha: (T, C), 0 at first; without gradients, but for its own step.
        temperature: tau; a buffer (), 1 at first.
        keeps_statistics: whether a forward pass in training moves the normalisation's running
            statistics; it does at first.

    Args:
        group: the tables.
        widths: see above.
        seed: of the projections.
    """

    temperature: Tensor
    means: Tensor
    variances: Tensor

    def __init__(self, group: Group, widths: Sequence[int], *, seed: int) -> None:
        super().__init__(group)
        self.widths = tuple(widths)
        self.keeps_statistics = True
        num, size = len(group.tables), group.width
        self.alpha = nn.Parameter(torch.zeros(num, len(self.widths)), requires_grad=False)
        generator = torch.Generator().manual_seed(hash_seed(seed, group.name))
        self.projections = nn.ParameterList(
            nn.Parameter(torch.randn(num, width, size, generator=generator) * width**-0.5)
            for width in self.widths
        )
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("means", torch.zeros(num, len(self.widths), size))
        self.register_buffer("variances", torch.ones(num, len(self.widths), size))

    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the mixed vectors (N, D)."""
        chances = self.chances()
        order = torch.argsort(tables, stable=True)
        sizes = torch.bincount(tables, minlength=len(self.group.tables)).tolist()
        parts = torch.split(vectors[order], sizes)
        mixed = [self._mixed(its, place, chances[place]) for place, its in enumerate(parts)]
        return torch.cat(mixed)[torch.argsort(order)]

    def chances(self) -> Tensor:
        """Return p (T, C), with fresh noise in training."""
        logits = torch.log_softmax(self.alpha, dim=1)
        if self.training:
            uniform = torch.rand_like(logits).clamp_(1e-10, 1 - 1e-7)
            logits = logits - torch.log(-torch.log(uniform))
        return torch.softmax(logits / self.temperature, dim=1)

    def preferences(self) -> dict[str, Tensor]:
        """Return log softmax(alpha) (C,) of each table."""
        found = torch.log_softmax(self.alpha.detach(), dim=1).cpu()
        return {table.name: found[place] for place, table in enumerate(self.group.tables)}

    def dense_parameters(self) -> list[nn.Parameter]:
        """Return the projections: alpha has a step of its own."""
        return list(self.projections.parameters())

    def _mixed(self, vectors: Tensor, place: int, chances: Tensor) -> Tensor:
        """Return the mixed vectors (N, D) of one table."""
        if not vectors.shape[0]:
            return vectors
        # A batch of one has no variance.
        is_batch = self.training and vectors.shape[0] > 1
        total = torch.zeros_like(vectors)
        for c, width in enumerate(self.widths):
            projected = vectors[:, :width] @ self.projections[c][place]
            mean, variance = self.means[place, c], self.variances[place, c]
            if is_batch and not self.keeps_statistics:
                mean, variance = mean.clone(), variance.clone()
            normal = F.batch_norm(projected, mean, variance, training=is_batch, momentum=_MOMENTUM)
            total = total + chances[c] * normal
        return total


def best_widths(
    preferences: Mapping[str, Sequence[float]],
    costs: Mapping[str, Sequence[int]],
    allowed_bytes: int | None,
) -> dict[str, int]:
    """Return which candidate of each table to take: those of the largest sum of preferences.

    Within a budget this is a knapsack, solved to 2^-16 of the budget for each table.

    Args:
        preferences: of each candidate, by table.
        costs: bytes of each candidate, by table.
        allowed_bytes: of all tables together; None for no limit.

    Returns:
        The cheapest of each if no others keep the budget.
    """
    if allowed_bytes is None:
        return {name: _argmax(its) for name, its in preferences.items()}
    unit = max(1.0, allowed_bytes / _GRID)
    num_units = int(allowed_bytes / unit) if allowed_bytes > 0 else 0
    best = torch.zeros(num_units + 1, dtype=torch.float64)
    choices = []
    for name, its in preferences.items():
        options = torch.full((len(its), num_units + 1), -torch.inf, dtype=torch.float64)
        for c, (value, cost) in enumerate(zip(its, costs[name], strict=True)):
            weight = -int(-cost // unit)
            if weight <= num_units:
                options[c, weight:] = best[: num_units + 1 - weight] + value
        best, choice = options.max(dim=0)
        choices.append(choice)
    if num_units == 0 or not torch.isfinite(best[-1]):
        return {name: min(range(len(its)), key=its.__getitem__) for name, its in costs.items()}
    found, left = {}, num_units
    for name, choice in zip(reversed(list(preferences)), reversed(choices), strict=True):
        found[name] = int(choice[left])
        left -= -int(-costs[name][found[name]] // unit)
    return {name: found[name] for name in preferences}


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
