"""How weights are drawn before training."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Initial:
    """A distribution of independent values.

    Attributes:
        distribution: "normal", or "uniform" in mean +- spread.
        spread: the standard deviation, or half the interval's length; not negative.
        mean: the mean.

    Raises:
        ValueError: on an unknown distribution or a negative spread.
    """

    distribution: Literal["normal", "uniform"]
    spread: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        if self.distribution not in ("normal", "uniform"):
            raise ValueError(
                f"Initial: distribution must be normal or uniform, got '{self.distribution}'"
            )
        if self.spread < 0:
            raise ValueError(f"Initial: spread must not be negative, got {self.spread}")

    @staticmethod
    def dlrm(num_rows: int) -> "Initial":
        """Return the uniform distribution in +-1/sqrt(num_rows).

        That of the DLRM reference implementation (Naumov et al., 2019) and of TorchRec.
        """
        return Initial(distribution="uniform", spread=num_rows**-0.5)

    @property
    def std(self) -> float:
        """Return the standard deviation."""
        return self.spread if self.distribution == "normal" else self.spread / 3**0.5

    def fill(self, target: Tensor, generator: torch.Generator) -> None:
        """Draw every value of `target`, of any floating-point type, on any device.

        Args:
            target: overwritten.
            generator: on the CPU.
        """
        is_direct = target.device.type == "cpu" and target.dtype == torch.float32
        values = target if is_direct else torch.empty(target.shape)
        if self.spread == 0:
            values.fill_(self.mean)
        elif self.distribution == "normal":
            values.normal_(self.mean, self.spread, generator=generator)
        else:
            low, high = self.mean - self.spread, self.mean + self.spread
            values.uniform_(low, high, generator=generator)
        if not is_direct:
            target.copy_(values)
