"""Tables that begin with rows from elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recemb.tables.backend import Backend
from recemb.tables.bounds import Bounds
from recemb.tables.full import full_tables
from recemb.tables.lookup_plan import DType
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.spec import TableSpec

_BLOCK_VALUES = 1 << 22


def from_pretrained(
    specs: Sequence[TableSpec],
    weights: Mapping[str, NDArray[Any] | Tensor | None],
    *,
    optimizer: TableOptimizer | None = None,
    backend: Backend = "auto",
    bounds: Bounds = "error",
    seed: int = 0,
    dtype: DType = "float32",
    device: torch.device | str | None = None,
) -> PlannedTables:
    """Return uncompressed tables whose rows are copies of arrays.

    For rows that never change, `freeze()` the result, or hand it to no optimizer.

    Args:
        specs: the tables.
        weights: the rows (num_embeddings, embedding_dim) of each table, by its name, of any
            floating-point type; a NumPy array may be a map of a file, and is read block by block.
            None draws them as `full_tables` does.
        optimizer: how rows are updated in the backward pass; None leaves it to torch.optim.
        backend: what updates the rows, see `PlannedTables`.
        bounds: what happens to an id outside [0, num_embeddings), see `BoundsCheck`.
        seed: of the rows that are drawn.
        dtype: of the values.
        device: where the tables live.

    Raises:
        ValueError: if a table has no entry or an entry no table, or an array has another shape,
            no floating-point numbers, or one that is not finite.

    >>> item = TableSpec(name="item", num_embeddings=3, embedding_dim=2, feature_names=("item",))
    >>> tables = from_pretrained([item], {"item": np.eye(3, 2)})
    >>> tables.rows("item", torch.tensor([1])).tolist()
    [[0.0, 1.0]]
    """
    names = [spec.name for spec in specs]
    if missing := [name for name in names if name not in weights]:
        raise ValueError(
            f"from_pretrained: tables {missing} have no entry in weights; give their rows, or None "
            "to draw them"
        )
    if unknown := [name for name in weights if name not in names]:
        raise ValueError(f"from_pretrained: weights has {unknown}, but the tables are {names}")
    for spec in specs:
        _check(spec, weights[spec.name])
    tables = full_tables(
        specs,
        optimizer=optimizer,
        backend=backend,
        bounds=bounds,
        seed=seed,
        dtype=dtype,
        device=device,
    )
    for spec in specs:
        source = weights[spec.name]
        if source is not None:
            _copy(spec, source, tables.table(spec.name).detach())
    return tables


def _check(spec: TableSpec, source: NDArray[Any] | Tensor | None) -> None:
    """Check the shape and the type of a table's rows.

    Raises:
        ValueError: if they are not the table's.
    """
    if source is None:
        return
    expected = (spec.num_embeddings, spec.embedding_dim)
    if tuple(source.shape) != expected:
        raise ValueError(
            f"from_pretrained: table '{spec.name}' has num_embeddings {expected[0]} and "
            f"embedding_dim {expected[1]}, but its array has shape {tuple(source.shape)}; it must "
            f"be {expected}"
        )
    is_float = (
        source.is_floating_point()
        if isinstance(source, Tensor)
        else np.issubdtype(source.dtype, np.floating)
    )
    if not is_float:
        raise ValueError(
            f"from_pretrained: the array of table '{spec.name}' has the type {source.dtype}; "
            "convert it to floating-point numbers"
        )


def _copy(spec: TableSpec, source: NDArray[Any] | Tensor, target: Tensor) -> None:
    """Copy rows, block by block.

    Raises:
        ValueError: on a value that is not finite.
    """
    num_rows = max(1, _BLOCK_VALUES // spec.embedding_dim)
    for first in range(0, spec.num_embeddings, num_rows):
        block = source[first : first + num_rows]
        if not isinstance(block, Tensor):
            # A copy: torch takes neither read-only arrays, such as maps of files, nor foreign
            # byte orders.
            with np.errstate(over="ignore"):
                block = torch.from_numpy(np.array(block, dtype=np.float32))
        copied = target[first : first + num_rows]
        copied.copy_(block.detach())
        is_finite = copied.isfinite().all(dim=1)
        if not is_finite.all():
            row = first + int(is_finite.logical_not().nonzero()[0])
            raise ValueError(
                f"from_pretrained: row {row} of table '{spec.name}' has a value that is not finite "
                f"in {target.dtype}; replace it"
            )
