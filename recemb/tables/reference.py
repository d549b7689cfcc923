"""Tables written to be read: what `full_tables` computes, by dense tensors, in any precision.

A slow twin for tests. Every update builds a dense gradient by adding one lookup after the other,
then applies the formula of `TableOptimizer` row by row, as it is written there.

Shapes: `B` examples, `N` ids, `R` num_embeddings, `D` embedding_dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec, output_keys


@dataclass
class ReferenceTable:
    """A table, its optimizer state and its dense gradient.

    Attributes:
        spec: the table.
        weight: (R, D).
        sum: (R, D), or (R, 1) row-wise: Adagrad's s.
        exp_avg: (R, D), Adam's m.
        exp_avg_sq: (R, D), or (R, 1) row-wise: Adam's v.
        step: Adam's t.
    """

    spec: TableSpec
    weight: Tensor
    sum: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int = 0


class ReferenceTables:
    """Tables with the same weights as given, trained the slow way.

    Args:
        specs: the tables.
        weights: initial weights (R, D) by table name; their dtype is used throughout.
        optimizer: how rows are updated.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        weights: Mapping[str, Tensor],
        optimizer: TableOptimizer,
    ) -> None:
        self.outputs = output_keys(specs)
        self.optimizer = optimizer
        columns = 1 if optimizer.kind.startswith("rowwise") else None
        self.tables = {}
        for spec in specs:
            weight = weights[spec.name].clone()
            state = torch.zeros_like(weight)[:, :columns]
            self.tables[spec.name] = ReferenceTable(
                spec=spec,
                weight=weight,
                sum=torch.full_like(state, optimizer.initial_accumulator),
                exp_avg=torch.zeros_like(weight),
                exp_avg_sq=state.clone(),
            )

    def pooled(self, features: KeyedJaggedTensor) -> Tensor:
        """Return the pooled vectors of all keys side by side, (B, sum of D)."""
        parts = []
        for spec, feature in self.outputs.values():
            if spec.pooling == "none":
                continue
            weight = self.tables[spec.name].weight
            bags = [
                (scales.unsqueeze(1) * weight[ids]).sum(dim=0)
                for ids, scales in _bags(features[feature], spec, weight.dtype)
            ]
            parts.append(torch.stack(bags))
        return torch.cat(parts, dim=1)

    def step(self, batches: Sequence[tuple[KeyedJaggedTensor, Tensor]]) -> None:
        """Update all pooled tables once, by the sum over batches.

        Args:
            batches: features, and the gradient (B, sum of D) of their `pooled`.
        """
        dense = {name: torch.zeros_like(t.weight) for name, t in self.tables.items()}
        touched = {name: set[int]() for name in self.tables}
        for features, grad in batches:
            first = 0
            for spec, feature in self.outputs.values():
                if spec.pooling == "none":
                    continue
                columns = grad[:, first : first + spec.embedding_dim]
                first += spec.embedding_dim
                bags = _bags(features[feature], spec, grad.dtype)
                for (ids, scales), row in zip(bags, columns, strict=True):
                    dense[spec.name].index_add_(0, ids, torch.outer(scales, row))
                    touched[spec.name].update(ids.tolist())
        for name, table in self.tables.items():
            if table.spec.pooling != "none":
                is_all = self.optimizer.rows == "all"
                rows = torch.tensor(
                    sorted(range(len(table.weight)) if is_all else touched[name]), dtype=torch.int64
                )
                self._update(table, rows, dense[name][rows])

    def _update(self, table: ReferenceTable, rows: Tensor, g: Tensor) -> None:
        o, lr = self.optimizer, self.optimizer.learning_rate
        w = table.weight[rows]
        if o.weight_decay_mode == "l2":
            g = g + o.weight_decay * w
        else:
            w = w * (1 - lr * o.weight_decay)
        squares = g**2
        if o.kind.startswith("rowwise"):
            squares = squares.mean(dim=1, keepdim=True)
        if o.kind == "sgd":
            w = w - lr * g
        elif o.kind in ("adagrad", "rowwise_adagrad"):
            table.sum[rows] = s = table.sum[rows] + squares
            w = w - lr * g / (s.sqrt() + o.eps)
        else:
            table.step += 1
            table.exp_avg[rows] = m = o.beta1 * table.exp_avg[rows] + (1 - o.beta1) * g
            table.exp_avg_sq[rows] = v = o.beta2 * table.exp_avg_sq[rows] + (1 - o.beta2) * squares
            m_hat = m / (1 - o.beta1**table.step)
            v_hat = v / (1 - o.beta2**table.step)
            w = w - lr * m_hat / (v_hat.sqrt() + o.eps)
        table.weight[rows] = w


def _bags(
    feature: JaggedTensor, spec: TableSpec, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Return the ids of each example's bag, and what each of their rows is multiplied by."""
    weights = feature.weights_or_none()
    bags, first = [], 0
    for length in feature.lengths().tolist():
        ids = feature.values()[first : first + length].long()
        scales = torch.ones(length, dtype=dtype)
        if weights is not None:
            scales = weights[first : first + length].to(dtype)
        if spec.pooling == "mean":
            scales = scales / max(length, 1)
        bags.append((ids, scales))
        first += length
    return bags
