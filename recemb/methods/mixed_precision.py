"""Rows read in several numbers of bits: all of them at once, weighed by gates, or one for each row.

With Q_b(w) = q * step_b + offset, q = clip(round((w - offset) / step_b)) in b bits, and Q_0(w) = 0:

    searched    e = sum over b of p_gb Q_b(w),   p_g = softmax(gates_g / tau),   g the row's group
    fixed       e = Q_b(w),   b the bits of the row's group

Shapes: `N` rows that were read, `R` rows of a group of tables' buffer, `D` its width, `G` frequency
groups, `C` numbers of bits.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recemb.methods.fake_quantised import fake_quantise, take
from recemb.methods.quantised_rows import Integers, quantise
from recemb.tables.layout import Group
from recemb.tables.transform import RowTransform

_SMALLEST_STEP = 1e-8


@dataclass(frozen=True)
class RowIntegers:
    """The integers of rows of different bits; an `IntegerRange`.

    Attributes:
        low: (N, 1).
        high: (N, 1).
    """

    low: Tensor
    high: Tensor

    def nearest(self, units: Tensor) -> Tensor:
        """Return the nearest integers of units (N, D), as floats; halves go to even ones."""
        return torch.minimum(torch.maximum(units.round(), self.low), self.high)


class MixedPrecision(RowTransform):
    """A step for each number of bits, an offset for each dimension.

    Attributes:
        bits: C of them, ascending.
        log_steps: (C,) natural logarithms.
        offsets: (1, D).
        is_measuring: whether a pass in training mode takes the mean size of the values it reads.

    Args:
        group: the tables.
        bits: see above.
    """

    def __init__(self, group: Group, bits: Sequence[int]) -> None:
        super().__init__(group)
        self.bits = tuple(bits)
        self.log_steps = nn.Parameter(torch.zeros(len(bits)))
        self.offsets = nn.Parameter(torch.zeros(1, group.width))
        self.is_measuring = False
        self._read = [0.0, 0.0]

    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the vectors (N, D), rounded."""
        if self.is_measuring and self.training:
            self._read[0] += float(vectors.detach().abs().sum())
            self._read[1] += vectors.numel()
        return self.rounded(vectors, rows.clamp(min=0).long())

    @abc.abstractmethod
    def rounded(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Return the vectors (N, D) of rows (N,) of the buffer, rounded."""

    def steps(self) -> Tensor:
        """Return the step of each number of bits, (C,), positive."""
        return self.log_steps.exp()

    @torch.no_grad()
    def begin(self, mean_size: float) -> None:
        """Set the steps to 2 mean |w| / sqrt(2^(b-1)), as LSQ does, given mean |w|."""
        levels = torch.tensor([2.0 ** (bits - 1) for bits in self.bits])
        steps = (2 * mean_size / levels.sqrt()).clamp(min=_SMALLEST_STEP)
        self.log_steps.copy_(steps.log())

    def measure(self) -> None:
        """Set the steps by the rows read since the last time, if there were any."""
        total, count = self._read
        if count:
            self.begin(total / count)
        self._read = [0.0, 0.0]

    def factors(self) -> Tensor:
        """Return what the gradients of steps are multiplied by, 1 / sqrt(2^(b-1) R D), (C, 1)."""
        size = self.group.num_rows * self.group.width
        found = [(2.0 ** (bits - 1) * size) ** -0.5 for bits in self.bits]
        return torch.tensor(found, device=self.offsets.device).unsqueeze(1)


class SearchedPrecision(MixedPrecision):
    """Reads rows in all numbers of bits at once, weighed by the gates of their groups.

    Attributes:
        gates: (G, C), 0 at first.
        groups: (R,) uint8, the group of each row.
        prices: (G,) of a bit in the penalty.

    Args:
        group: the tables.
        bits: see `MixedPrecision`.
        groups: see above.
        prices: see above.
        temperature: tau.
    """

    groups: Tensor
    prices: Tensor

    def __init__(
        self,
        group: Group,
        bits: Sequence[int],
        *,
        groups: Tensor,
        prices: Tensor,
        temperature: float,
    ) -> None:
        super().__init__(group, bits)
        self.temperature = temperature
        self.gates = nn.Parameter(torch.zeros(prices.numel(), len(bits)))
        self.register_buffer("groups", groups)
        self.register_buffer("prices", prices)

    def rounded(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Return the weighed vectors (N, D)."""
        shares = take(self.probabilities(), self.groups[rows].long())
        steps, factors = self.steps().unsqueeze(1), self.factors()
        total = torch.zeros_like(vectors)
        for place, bits in enumerate(self.bits):
            if bits:
                here = slice(place, place + 1)
                of_bits = fake_quantise(
                    vectors, steps[here], self.offsets, rows, Integers(bits=bits), factors[here]
                )
                total = total + of_bits * shares[:, here]
        return total

    def probabilities(self) -> Tensor:
        """Return p (G, C)."""
        return torch.softmax(self.gates / self.temperature, dim=1)

    def penalty(self) -> Tensor:
        """Return the price of the expected bits of all groups."""
        bits = self.prices.new_tensor(self.bits)
        return (self.probabilities() @ bits * self.prices).sum()


class FixedPrecision(MixedPrecision):
    """Reads each row in its own number of bits.

    Attributes:
        classes: (R,) uint8, which of `bits` a row has.

    Args:
        group: the tables.
        bits: see `MixedPrecision`.
        classes: see above.
    """

    classes: Tensor

    def __init__(self, group: Group, bits: Sequence[int], *, classes: Tensor) -> None:
        super().__init__(group, bits)
        self.register_buffer("classes", classes)

    def rounded(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Return the rounded vectors (N, D)."""
        places = self.classes[rows].long()
        integers, is_zero = self._integers(places)
        found = fake_quantise(
            vectors, self.steps().unsqueeze(1), self.offsets, places, integers, self.factors()
        )
        return found.masked_fill(is_zero, 0)

    @torch.no_grad()
    def integers(self, weight: Tensor) -> Tensor:
        """Return the integers (R, D) of the buffer `weight`."""
        places = self.classes.long()
        steps = self.steps()[places].unsqueeze(1)
        return quantise(weight, steps, self.offsets, self._integers(places)[0])

    def _integers(self, places: Tensor) -> tuple[RowIntegers, Tensor]:
        """Return the integers of rows whose classes (N,) are `places`, and which have none."""
        ranges = [Integers(bits=bits) for bits in self.bits]
        low = torch.tensor([float(r.low if r.bits else 0) for r in ranges], device=places.device)
        high = torch.tensor([float(r.high if r.bits else 0) for r in ranges], device=places.device)
        is_zero = torch.tensor([not bits for bits in self.bits], device=places.device)
        found = RowIntegers(low[places].unsqueeze(1), high[places].unsqueeze(1))
        return found, is_zero[places].unsqueeze(1)
