"""The optimizers' formulas, on a block of rows.

Shapes: `U` rows of the block, `D` embedding_dim.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.tables.optimizer import Kind, TableOptimizer

STATE_PARTS: dict[Kind, tuple[tuple[str, bool], ...]] = {
    "sgd": (),
    "adagrad": (("sum", False),),
    "rowwise_adagrad": (("sum", True),),
    "adam": (("exp_avg", False), ("exp_avg_sq", False)),
    "rowwise_adam": (("exp_avg", False), ("exp_avg_sq", True)),
}
"""Names of each kind's state tensors, and whether they hold one value per row."""


def counts_steps(kind: Kind) -> bool:
    """Return whether the formula needs the number of steps."""
    return kind in ("adam", "rowwise_adam")


@dataclass(frozen=True, kw_only=True)
class Formula:
    """One step's formula: `TableOptimizer` with this step's learning rate and count.

    Attributes:
        optimizer: kind and hyper-parameters.
        learning_rate: lr of this step.
        step: number of this step, from 1.
    """

    optimizer: TableOptimizer
    learning_rate: float
    step: int

    @property
    def corrections(self) -> tuple[float, float]:
        """Return Adam's bias corrections 1 - beta1^t and 1 - beta2^t."""
        return 1 - self.optimizer.beta1**self.step, 1 - self.optimizer.beta2**self.step

    def apply(self, rows: Tensor, grad: Tensor, state: Mapping[str, Tensor]) -> None:
        """Update `rows` and `state` in place; `grad` is overwritten.

        Args:
            rows: (U, D) weights.
            grad: (U, D) gradients, duplicates summed.
            state: by the names of STATE_PARTS, (U, D) or (U,).
        """
        o, lr = self.optimizer, self.learning_rate
        if o.weight_decay > 0:
            if o.weight_decay_mode == "l2":
                grad.add_(rows, alpha=o.weight_decay)
            else:
                rows.mul_(1 - lr * o.weight_decay)
        match o.kind:
            case "sgd":
                rows.add_(grad, alpha=-lr)
            case "adagrad":
                total = state["sum"].addcmul_(grad, grad)
                rows.addcdiv_(grad, total.sqrt().add_(o.eps), value=-lr)
            case "rowwise_adagrad":
                total = state["sum"].add_(_mean_of_squares(grad))
                scale = total.sqrt().add_(o.eps).reciprocal_().mul_(-lr)
                rows.add_(grad.mul_(scale.unsqueeze(1)))
            case "adam" | "rowwise_adam":
                self._apply_adam(rows, grad, state)

    def _apply_adam(self, rows: Tensor, grad: Tensor, state: Mapping[str, Tensor]) -> None:
        o = self.optimizer
        first = state["exp_avg"].lerp_(grad, 1 - o.beta1)
        second = state["exp_avg_sq"].mul_(o.beta2)
        if o.kind == "adam":
            second.addcmul_(grad, grad, value=1 - o.beta2)
        else:
            second.add_(_mean_of_squares(grad), alpha=1 - o.beta2)
        correction1, correction2 = self.corrections
        denominator = second.sqrt().mul_(1 / math.sqrt(correction2)).add_(o.eps)
        if o.kind == "rowwise_adam":
            denominator = denominator.unsqueeze(1)
        rows.addcdiv_(first, denominator, value=-self.learning_rate / correction1)


def _mean_of_squares(grad: Tensor) -> Tensor:
    """Return the mean of squares of each row, (U,)."""
    width = grad.shape[1]
    if width == 1:
        return grad.view(-1).square()
    # A matrix product, for a sum over a short axis takes several times as long.
    return torch.mv(grad.square(), grad.new_full((width,), 1 / width))
