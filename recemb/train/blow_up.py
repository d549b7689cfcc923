"""Why a loss is not finite: which feature's vectors, or gradients, are too large.

Shapes: `N` vectors of a key in a batch, `D` their width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recemb.tables.storage import Storage
from recemb.tables.tables import Tables
from recemb.train.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class FeatureGradient:
    """How large a feature's vectors and their gradients are.

    Attributes:
        key: of the tables' output.
        gradient_norm: L2 norm of the loss's gradient by all its vectors; infinite if any is not
            finite.
        vector_norm: L2 norm of the vectors; infinite likewise.
    """

    key: str
    gradient_norm: float
    vector_norm: float

    def __str__(self) -> str:
        return (
            f"feature '{self.key}' (gradient {_size(self.gradient_norm)}, vectors "
            f"{_size(self.vector_norm)})"
        )


def worst_features(tables: Tables, loss_of: Callable[[Tables], Tensor]) -> str:
    """Return, in words, whose gradient is largest, and whose vectors are if that is another's.

    Nothing is updated. Empty if the loss does not depend on vectors.

    Args:
        tables: looked up.
        loss_of: returns the loss, a scalar, with vectors from the tables that it is given.
    """
    found = feature_gradients(tables, loss_of)
    if not found:
        return ""
    # Where one feature makes the loss infinite, the gradients of all may be: then its vectors tell.
    steepest = max(found, key=lambda its: (its.gradient_norm, its.vector_norm))
    largest = max(found, key=lambda its: its.vector_norm)
    text = f"{steepest} has the largest gradient"
    is_same = largest.vector_norm <= steepest.vector_norm
    return text if is_same else f"{text}, {largest} the largest vectors"


def feature_gradients(tables: Tables, loss_of: Callable[[Tables], Tensor]) -> list[FeatureGradient]:
    """Return how large the vectors of each key are, and the loss's gradient by them.

    Args:
        tables: looked up, not updated.
        loss_of: returns the loss, a scalar, with vectors from the tables that it is given.
    """
    leaves = _VectorLeaves(tables)
    with torch.enable_grad():
        loss = loss_of(leaves)
        if not leaves.found or not loss.requires_grad:
            return []
        vectors = [vector for _, vector in leaves.found]
        grads = torch.autograd.grad(loss, vectors, allow_unused=True, materialize_grads=True)
    squares: dict[str, list[float]] = {}
    for (key, vector), grad in zip(leaves.found, grads, strict=True):
        sums = squares.setdefault(key, [0.0, 0.0])
        sums[0] += _square(grad)
        sums[1] += _square(vector)
    found = []
    for key, mine in squares.items():
        sums = Ranks.current().sums(*mine)
        gradient, size = (math.sqrt(s) if math.isfinite(s) else math.inf for s in sums)
        found.append(FeatureGradient(key=key, gradient_norm=gradient, vector_norm=size))
    return found


class _VectorLeaves(Tables):
    """Tables whose vectors are leaves of the graph: gradients end at them.

    Attributes:
        found: keys and leaves, in the order in which they were looked up.
    """

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables.specs)
        self._tables = tables
        self.embedding_dims = tables.embedding_dims
        self.sequence_dims = tables.sequence_dims
        self.found: list[tuple[str, Tensor]] = []

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        with torch.no_grad():
            looked_up = self._tables(features).to_dict()
        leaves = {key: v.detach().clone().requires_grad_() for key, v in looked_up.items()}
        self.found += leaves.items()
        return KeyedTensor(
            keys=list(self.keys),
            length_per_key=list(self.embedding_dims.values()),
            values=torch.cat([leaves[key] for key in self.keys], dim=1),
        )

    def sequences(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        with torch.no_grad():
            looked_up = self._tables.sequences(features)
        leaves = {k: j.values().detach().clone().requires_grad_() for k, j in looked_up.items()}
        self.found += leaves.items()
        return {
            key: JaggedTensor(
                values=leaves[key], lengths=its.lengths(), weights=its.weights_or_none()
            )
            for key, its in looked_up.items()
        }

    def rows(self, key: str, ids: Tensor) -> Tensor:
        return self._tables.rows(key, ids)

    def storage(self) -> Storage:
        return self._tables.storage()

    def freeze(self) -> Tables:
        return self._tables.freeze()

    def set_learning_rate(self, learning_rate: float) -> None:
        self._tables.set_learning_rate(learning_rate)

    def defer_updates(self, flag: bool) -> None:
        self._tables.defer_updates(flag)


def _square(values: Tensor) -> float:
    # In double precision: squares of large numbers overflow in single.
    return float(values.detach().double().square().sum())


def _size(norm: float) -> str:
    return f"of norm {norm:.3g}" if math.isfinite(norm) else "not finite"
