"""How the rows of tables are updated, in the backward pass."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"]
KINDS: tuple[Kind, ...] = ("sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam")


@dataclass(frozen=True, kw_only=True)
class TableOptimizer:
    """An exact row-sparse optimizer.

    Duplicate ids of a step are summed first, then each touched row is updated once. With g the
    summed gradient of a row w, and weight_decay wd (L2 mode adds wd*w to g, decoupled mode
    multiplies w by 1 - lr*wd before the step):

    - sgd: w -= lr * g
    - adagrad: s += g**2; w -= lr * g / (sqrt(s) + eps)
    - rowwise_adagrad: s += mean(g**2), one s per row; w -= lr * g / (sqrt(s) + eps)
    - adam: m, v, and the step count t of the table as in Kingma and Ba (2015), algorithm 1, with
      bias correction; rows that are not touched keep m and v ("lazy": differs from dense Adam)
    - rowwise_adam: as adam, with one v per row, the mean of g**2

    Attributes:
        kind: one of KINDS.
        learning_rate: lr.
        eps: added to the denominator.
        beta1: decay of m.
        beta2: decay of v.
        weight_decay: wd.
        weight_decay_mode: "l2" or "decoupled".
        initial_accumulator: initial value of s.
        rows: "touched" updates the rows of a step's ids only; "all" visits every row every step,
            which equals the dense optimizer of torch.optim (a row without ids has g = 0) and costs
            a pass over the whole table.

    Raises:
        ValueError: on an unknown word or a number outside its range.
    """

    kind: Kind = "rowwise_adagrad"
    learning_rate: float = 0.02
    eps: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    weight_decay_mode: Literal["l2", "decoupled"] = "l2"
    initial_accumulator: float = 0.0
    rows: Literal["touched", "all"] = "touched"

    def __post_init__(self) -> None:
        words = {
            "kind": KINDS,
            "weight_decay_mode": ("l2", "decoupled"),
            "rows": ("touched", "all"),
        }
        for field, allowed in words.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"TableOptimizer: {field} must be one of {', '.join(allowed)}, "
                    f"got '{getattr(self, field)}'"
                )
        for field in ("learning_rate", "eps", "weight_decay", "initial_accumulator"):
            if getattr(self, field) < 0:
                raise ValueError(
                    f"TableOptimizer: {field} must not be negative, got {getattr(self, field)}"
                )
        for field in ("beta1", "beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(
                    f"TableOptimizer: {field} must be in [0, 1), got {getattr(self, field)}"
                )


def check_learning_rate(optimizer: TableOptimizer | None, learning_rate: float) -> None:
    """Check that tables with this optimizer can be given a learning rate.

    Raises:
        ValueError: if it is negative, or there is no optimizer.
    """
    if optimizer is None:
        raise ValueError(
            "tables: there is no table optimizer whose learning rate could be set; pass "
            "optimizer=TableOptimizer(...) or set it in your own optimizer"
        )
    if learning_rate < 0:
        raise ValueError(f"tables: learning_rate must not be negative, got {learning_rate}")
