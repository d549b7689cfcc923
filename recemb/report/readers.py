"""How the first layer of a network reads the features, and how long rows have become.

Shapes: `F` features, `H` units of the first layer, `W` the sum of all features' widths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.tables.planned import PlannedTables


def reader_angles(weight: Tensor, widths: Sequence[int]) -> Tensor:
    """Return the angles (F, F) in degrees, 0 to 90, between the weights that read the features.

    A feature's reader is its block of the first layer, as one vector. A row that two features share
    is updated along both readers; the second's part does not disturb the first where they are at
    right angles, whatever its sign, so the angle is that between lines.

    Args:
        weight: (H, W), the first layer's, columns in the order of the features.
        widths: of the F features' vectors; all equal, for blocks of different sizes have no angle.

    Raises:
        ValueError: if the widths differ, or do not add up to W.

    Source: Coleman et al., "Unified Embedding", NeurIPS 2023, section 4 (one output: H = 1).
    """
    if len(set(widths)) != 1:
        raise ValueError(
            f"reader_angles: readers of different sizes have no angle; widths are {list(widths)}"
        )
    if sum(widths) != weight.shape[1]:
        raise ValueError(
            f"reader_angles: the widths add up to {sum(widths)}, but the layer reads "
            f"{weight.shape[1]} values; leave out the columns of dense inputs"
        )
    readers = weight.detach().double().view(weight.shape[0], len(widths), widths[0])
    flat = torch.nn.functional.normalize(readers.transpose(0, 1).flatten(1), dim=1)
    return torch.rad2deg(torch.arccos((flat @ flat.T).abs().clamp(max=1)))


def mean_angle(angles: Tensor) -> float:
    """Return the mean of the angles (F, F) between different features.

    Raises:
        ValueError: for fewer than two features.
    """
    num = angles.shape[0]
    if num < 2:
        raise ValueError("mean_angle: an angle takes two features")
    apart = ~torch.eye(num, dtype=torch.bool, device=angles.device)
    return float(angles[apart].mean())


@dataclass(frozen=True, kw_only=True)
class RowNorms:
    """The lengths of the rows of one physical table.

    Attributes:
        table: its name.
        num_rows: rows that were looked at.
        mean_square: mean of the squared L2 norms.
        quantiles: of the L2 norms, at 0, 1/4, 1/2, 3/4 and 1.
        num_zero: rows of zeros.
    """

    table: str
    num_rows: int
    mean_square: float
    quantiles: tuple[float, float, float, float, float]
    num_zero: int


def row_norms(tables: PlannedTables, table: str, rows: Tensor | None = None) -> RowNorms:
    """Return the lengths of the rows of a physical table.

    Args:
        tables: where it is.
        table: its name.
        rows: those to look at, for example the used ones; all by default.

    Raises:
        ValueError: if there is no such table, or no row to look at.
    """
    weight = tables.table(table).detach()
    chosen = weight if rows is None else weight[rows]
    if not chosen.shape[0]:
        raise ValueError(f"row_norms: no row of '{table}' was chosen")
    norms = chosen.double().norm(dim=1)
    ordered = norms.sort().values
    places = [round(q * (ordered.numel() - 1) / 4) for q in range(5)]
    least, low, middle, high, most = (float(ordered[place]) for place in places)
    return RowNorms(
        table=table,
        num_rows=chosen.shape[0],
        mean_square=float(norms.square().mean()),
        quantiles=(least, low, middle, high, most),
        num_zero=int((norms == 0).sum()),
    )
