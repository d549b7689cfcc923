"""TT-Rec: a table as a tensor train of three cores.

    id = i1 + p1 (i2 + p2 i3),    D = q1 q2 q3
    row(id) = G1[i1] (q1 x r) . G2[i2] (r x q2 r) . G3[i3] (r x q3)

Source: Yin et al., "TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models",
MLSys 2021, section 3; factors of n and D, and the order of the digits, as in the VLDB 2024 study of
Zhang et al., so that its budgets are reproduced. Departures: ids of a batch are computed once each,
and no rows are cached; the cores are drawn so that rows have the standard deviation s that is asked
for: a row sums r^2 products of three values, so each is drawn from N(0, (s / r)^(2/3)). Published
code draws cores whatever the rank, which makes rows 60 to 400 times too large.

Shapes: `U` ids, `D` embedding_dim, `r` rank; core k has p_k slices.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recemb.methods.computed import ComputedMethod, Design, largest_size
from recemb.tables.method import Budget
from recemb.tables.row_source import RowSource
from recemb.tables.spec import TableSpec

MAX_RANK = 1000
"""The study looks no further."""

_GATHERED_VALUES = 1 << 22
"""Values of the middle core that are gathered for a batch at most, 16 MiB; above, ids are grouped
by their slice instead, which costs a loop over slices."""


class TTCores(RowSource):
    """The three cores of one table.

    Args:
        num_embeddings: n.
        embedding_dim: D.
        rank: r.
        std: of the initial rows.
        device: where the cores live.
    """

    form: ClassVar[str] = "tt_cores"
    packable: ClassVar[str | None] = "first|middle|last"

    def __init__(
        self,
        *,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        std: float,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.rank, self.std = rank, std
        self.digits = factor_ids(num_embeddings)
        self.widths = factor_width(embedding_dim)
        (p1, p2, p3), (q1, q2, q3) = self.digits, self.widths
        self.first = nn.Parameter(torch.empty(p1, q1, rank, device=device))
        self.middle = nn.Parameter(torch.empty(p2, rank, q2 * rank, device=device))
        self.last = nn.Parameter(torch.empty(p3, rank, q3, device=device))

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments but `device`."""
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "rank": self.rank,
            "std": self.std,
        }

    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (U, D) of `ids` (U,)."""
        p1, p2, _ = self.digits
        q1, q2, _ = self.widths
        left = self.first.index_select(0, ids % p1)
        left = middle_product(left, self.middle, ids // p1 % p2)
        left = left.view(-1, q1 * q2, self.rank)
        rows = torch.bmm(left, self.last.index_select(0, ids // (p1 * p2)))
        return rows.view(-1, self.embedding_dim)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the cores such that rows have the standard deviation `std`."""
        sigma = (self.std / self.rank) ** (1 / 3)
        for core in (self.first, self.middle, self.last):
            values = torch.empty(core.shape).normal_(0, sigma, generator=generator)
            core.detach().copy_(values)


def middle_product(
    left: Tensor, core: Tensor, slices: Tensor, *, most: int = _GATHERED_VALUES
) -> Tensor:
    """Return the products (U, q1, q2 r) of each id's matrix with its slice of the middle core.

    Args:
        left: (U, q1, r).
        core: (p2, r, q2 r).
        slices: (U,) int64, which slice belongs to each id.
        most: values that may be gathered; above, ids are grouped by slice.
    """
    if slices.numel() * core.shape[1] * core.shape[2] <= most:
        return torch.bmm(left, core.index_select(0, slices))
    order = torch.argsort(slices, stable=True)
    sizes = torch.bincount(slices, minlength=core.shape[0]).tolist()
    groups = torch.split(left.index_select(0, order), sizes)
    products = [
        (group.flatten(0, 1) @ matrix).view(group.shape[0], group.shape[1], -1)
        for group, matrix in zip(groups, core.unbind(0), strict=True)
        if group.shape[0]
    ]
    return torch.cat(products).index_select(0, torch.argsort(order))


class TTRec(ComputedMethod):
    """Tensor trains of one rank for all tables: the largest rank that fits the budget.

    Args:
        init_std: standard deviation of the initial vectors; None for the uniform distribution of
            DLRM.
    """

    def __init__(self, *, init_std: float | None = None) -> None:
        super().__init__(init_std=init_std)

    def design(self, specs: Sequence[TableSpec], budget: Budget | None) -> Design:
        """Return the design of the largest rank within `budget`, or that of rank 1."""
        rank = largest_size(
            lambda r: sum(min(spec.full_bytes, 4 * num_values(spec, r)) for spec in specs),
            budget,
            specs,
            most=MAX_RANK,
        )
        computed = [s for s in specs if 4 * num_values(s, rank) < s.full_bytes]
        make: dict[str, Callable[[torch.device], RowSource]] = {
            spec.name: partial(_make, spec, rank, self.std(spec)) for spec in computed
        }
        return Design(
            make=make,
            source_of={spec.name: spec.name for spec in computed},
            parameters={"rank": rank, "computed_tables": len(computed)},
        )


def _make(spec: TableSpec, rank: int, std: float, device: torch.device) -> TTCores:
    return TTCores(
        num_embeddings=spec.num_embeddings,
        embedding_dim=spec.embedding_dim,
        rank=rank,
        std=std,
        device=device,
    )


def num_values(spec: TableSpec, rank: int) -> int:
    """Return the values of a table's cores: (p1 q1 + p2 q2 r + p3 q3) r."""
    (p1, p2, p3), (q1, q2, q3) = factor_ids(spec.num_embeddings), factor_width(spec.embedding_dim)
    return (p1 * q1 + p2 * q2 * rank + p3 * q3) * rank


def factor_ids(num_embeddings: int) -> tuple[int, int, int]:
    """Return p1 <= p2 <= p3, or nearly, of product n or more.

    p3 is the cube root of n, p2 the square root of what is left, p1 the rest, each rounded up.
    """
    p3 = math.isqrt(round(num_embeddings ** (2 / 3)))
    while p3**3 < num_embeddings:
        p3 += 1
    while p3 > 1 and (p3 - 1) ** 3 >= num_embeddings:
        p3 -= 1
    p2 = math.isqrt(-(-num_embeddings // p3) - 1) + 1
    p1 = -(-num_embeddings // (p2 * p3))
    return p1, p2, p3


def factor_width(embedding_dim: int) -> tuple[int, int, int]:
    """Return q1 <= q2 <= q3 of product D, of the least sum: 16 is 2 x 2 x 4."""
    found = [
        (q1, q2, embedding_dim // (q1 * q2))
        for q1 in range(1, round(embedding_dim ** (1 / 3)) + 1)
        if embedding_dim % q1 == 0
        for q2 in range(q1, math.isqrt(embedding_dim // q1) + 1)
        if embedding_dim // q1 % q2 == 0
    ]
    return min(found, key=sum)
