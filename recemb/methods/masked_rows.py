"""Rows that a learned threshold may switch off, cut to a prefix: OptEmbed's supernet.

    m_k = s(||E_k||_p - t_field(k)),   e_k = T[d] * m_k * E_k

where s is 1 above zero and 0 elsewhere, and T[d] keeps the first d values. The derivative of s is
replaced by the long-tailed estimator 2 - 4|x| up to 0.4, 0.4 up to 1, and 0 beyond.

Shapes: `N` rows that were read, `R` rows of a group's buffer, `D` its width, `T` its tables.

Source: Lyu et al., "OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction",
CIKM 2022, section 3; the estimator is that of Liu et al., "Dynamic Sparse Training", ICLR 2020.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recemb.tables.layout import Group
from recemb.tables.transform import RowTransform

Scope = Literal["field", "feature"]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Of what kind thresholds are, and how they are trained.

    Attributes:
        learning_rate: of plain SGD on them.
        alpha: weight of the penalty sum(exp(-t)).
        scope: "field", one for each table, or "feature", one for each row.
        norm: the p of the norm that they are compared with, 1 or 2.
        minimum: they are not let below this, where they could never prune; None for no limit, as
            in the authors' code.

    Raises:
        ValueError: on an unknown word or a negative number.
    """

    learning_rate: float = 1e-4
    alpha: float = 1e-4
    scope: Scope = "field"
    norm: Literal[1, 2] = 1
    minimum: float | None = 0.0

    def __post_init__(self) -> None:
        if self.scope not in ("field", "feature") or self.norm not in (1, 2):
            raise ValueError(
                f"Thresholds: scope must be field or feature and norm 1 or 2, got '{self.scope}' "
                f"and {self.norm}"
            )
        if self.learning_rate < 0 or self.alpha < 0:
            raise ValueError(
                "Thresholds: learning_rate and alpha must not be negative, got "
                f"{self.learning_rate} and {self.alpha}"
            )


class SurrogateStep(torch.autograd.Function):
    """The step function, with the long-tailed estimator in place of its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return 1 where x > 0, else 0, of the type of x."""
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return grad times the estimator."""
        (x,) = ctx.saved_tensors
        return grad * surrogate_slope(x)


def surrogate_slope(x: Tensor) -> Tensor:
    """Return 2 - 4|x| for |x| <= 0.4, 0.4 for |x| <= 1, and 0 beyond."""
    size = x.abs()
    tail = torch.where(size <= 1, 0.4, 0.0).to(x.dtype)
    return torch.where(size <= 0.4, 2 - 4 * size, tail)


class MaskedRows(RowTransform):
    """Row thresholds and prefix widths over a group of tables.

    In training, with `draws_widths`, every row that is read gets a prefix width of its own, uniform
    in 1 to D; otherwise, and in evaluation, a table's rows have its width of `widths`.

    Attributes:
        thresholds: (T,), or (R,) in scope "feature"; starting at 0.
        widths: (T,) int64, the prefix width of each table; D at first.
        draws_widths: see above; False at first.

    Args:
        group: the tables.
        settings: of the thresholds; None for none at all.
    """

    widths: Tensor

    def __init__(
        self,
        group: Group,
        *,
        settings: Thresholds | None = None,
    ) -> None:
        super().__init__(group)
        self.draws_widths = False
        self.settings = Thresholds() if settings is None else settings
        num = len(group.tables) if self.settings.scope == "field" else group.num_rows
        self.thresholds = None if settings is None else nn.Parameter(torch.zeros(num))
        self.register_buffer("widths", torch.full((len(group.tables),), group.width))

    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the vectors (N, D), switched off and cut."""
        if self.thresholds is not None:
            at = tables if self.settings.scope == "field" else rows.clamp(min=0).long()
            margin = self._norms(vectors) - self.thresholds[at]
            apply: Callable[..., Tensor] = SurrogateStep.apply  # torch gives it no types
            vectors = vectors * apply(margin).unsqueeze(1)
        width = self.group.width
        if self.training and self.draws_widths:
            drawn = torch.randint(1, width + 1, (vectors.shape[0], 1), device=vectors.device)
        else:
            drawn = self.widths[tables].unsqueeze(1)
        return vectors * (torch.arange(width, device=vectors.device) < drawn)

    def kept(self, weight: Tensor) -> Tensor:
        """Return which rows (R,) of the buffer `weight` (R, D) are on."""
        if self.thresholds is None:
            return torch.ones(weight.shape[0], dtype=torch.bool)
        limits = self.thresholds.detach()
        if self.settings.scope == "field":
            limits = limits[self.table_of_row().to(limits.device)]
        return self._norms(weight.detach()) > limits

    def _norms(self, vectors: Tensor) -> Tensor:
        """Return the norms of the vectors (N, D)."""
        if self.settings.norm == 1:
            return vectors.abs().sum(1)  # several times as fast as norm(p=1)
        norms: Tensor = torch.linalg.vector_norm(vectors, dim=1)
        return norms

    def penalty(self) -> Tensor:
        """Return alpha * sum(exp(-t))."""
        if self.thresholds is None:
            return torch.zeros(())
        return self.settings.alpha * torch.exp(-self.thresholds).sum()

    def dense_parameters(self) -> list[nn.Parameter]:
        """Return nothing: thresholds have an optimizer of their own."""
        return []
