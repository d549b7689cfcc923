"""MDE: frequent tables wide, large tables narrow, projected to one width.

    d_f = D (n_min / n_f)^alpha,   e(i) = E_f[i] P_f

Source: Ginart et al., "Mixed Dimension Embeddings with Application to Memory-Efficient
Recommendation Systems", ISIT 2021, algorithm 2 (popularity by table size). The smallest table has
the full width. Departure: the projections count against the budget, which the paper leaves out.
"""

from collections.abc import Sequence

from recemb.methods.low_dimension import mixed_dimension, mixed_width
from recemb.tables.blueprint import Blueprint, PlannedMethod, largest
from recemb.tables.method import Budget, IdCounts
from recemb.tables.spec import TableSpec

_STEPS = 1 << 16


class MDE(PlannedMethod):
    """Widths that fall with a power of the number of ids; the least power that fits the budget.

    Args:
        round_to_power_of_two: of the widths, as in the VLDB 2024 study; it makes budgets coarse.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
    """

    def __init__(
        self, *, round_to_power_of_two: bool = False, init_std: float | None = None
    ) -> None:
        self.round_to_power_of_two = round_to_power_of_two
        self.init_std = init_std

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the blueprint of the least alpha in [0, 1] within `budget`, or that of 1."""
        return largest(lambda size: self._of(specs, size), budget, specs, most=_STEPS + 1)

    def _of(self, specs: Sequence[TableSpec], size: int) -> Blueprint:
        alpha = (_STEPS + 1 - size) / _STEPS
        least = min(spec.num_embeddings for spec in specs)
        widths = {}
        for spec in specs:
            width = spec.embedding_dim * (least / spec.num_embeddings) ** alpha
            widths[spec.name] = mixed_width(spec, self._round(width))
        made = mixed_dimension(specs, widths, init_std=self.init_std)
        return Blueprint(
            plan=made.plan,
            initial=made.initial,
            parameters={"alpha": alpha, "widths": widths},
        )

    def _round(self, width: float) -> int:
        whole = max(1, round(width))
        if not self.round_to_power_of_two:
            return whole
        return 1 << max(0, round(width).bit_length() - 1) if width >= 1 else 1
