"""Which values of tables are kept: those of the highest scores, as many as a budget holds.

Vectors and first-order weights are two kinds, whose sizes do not compare: of each kind the same
share is kept, its values of the highest scores, whichever table they are in.

Shapes: `n` rows of a table, `D` its width.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.methods.sparse_rows import SparseForm, smallest_form

NEVER = -math.inf
"""The score of a value that is not kept, whatever the share: of one that is zero already."""

_HALF = 1 << 16
_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A decision of a `Ranking`.

    Attributes:
        share: of the values of each kind that is kept, but for those that are never kept.
        thresholds: by table, the lowest score that is kept.
    """

    share: float
    thresholds: Mapping[str, float]


class Order:
    """The order of many float32 values, without sorting them.

    The k-th largest is found in two passes: a histogram of the upper halves of all values' bits,
    then one of the lower halves of those values that share its upper half.

    Args:
        tensors: the values, of any shapes; no NaN.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self.size = sum(t.numel() for t in tensors)
        self._upper = self._histogram(None)
        self._lower: dict[int, Tensor] = {}

    def largest(self, k: int) -> float:
        """Return the k-th largest value, k from 1 to `size`."""
        upper, left = _find(self._upper, k)
        if upper not in self._lower:
            self._lower[upper] = self._histogram(upper)
        lower, _ = _find(self._lower[upper], left)
        key = torch.tensor([(upper - _HALF // 2) * _HALF + lower], dtype=torch.int32)
        return float(_flipped(key).view(torch.float32))

    def _histogram(self, upper: int | None) -> Tensor:
        """Return the counts of upper halves, or of the lower halves of those that have `upper`."""
        counts = torch.zeros(_HALF, dtype=torch.int64)
        for keys in self._keys():
            found = (keys >> 16) + _HALF // 2
            if upper is not None:
                found = keys[found == upper] & (_HALF - 1)
            counts += torch.bincount(found, minlength=_HALF).cpu()
        return counts

    def _keys(self) -> Iterator[Tensor]:
        """Yield integers in the order of the values."""
        for tensor in self._tensors:
            for chunk in torch.split(tensor.flatten(), _CHUNK):
                yield _flipped(chunk.view(torch.int32))


class Ranking:
    """The values of some tables, ranked within each kind.

    Args:
        scores: (n, D) float32 of each table, by its name; NEVER for values that never stay.
    """

    def __init__(self, scores: Mapping[str, Tensor]) -> None:
        self._scores = scores
        kinds: dict[bool, list[str]] = {}
        for name, its in scores.items():
            kinds.setdefault(its.shape[1] == 1, []).append(name)
        self._kinds = [(names, Order([scores[name] for name in names])) for names in kinds.values()]
        self._steps = max(order.size for _, order in self._kinds)

    def cut(self, share: float) -> Cut:
        """Return what keeps a share of the values of each kind, rounded down."""
        return self._cut(whole(share * self._steps))

    def within(self, allowed_bytes: int) -> Cut:
        """Return what keeps the largest share whose serving form takes at most `allowed_bytes`.

        It is exact to a value of the larger kind; values of equal scores go together.
        """
        low, high = 0, self._steps
        if self._num_bytes(high) <= allowed_bytes:
            low = high
        while low < high:
            middle = (low + high + 1) // 2
            if self._num_bytes(middle) <= allowed_bytes:
                low = middle
            else:
                high = middle - 1
        return self._cut(low)

    def kept(self, name: str, cut: Cut) -> Tensor:
        """Return which values (n, D) of a table are kept."""
        return _reaches(self._scores[name], cut.thresholds[name])

    def forms(self, cut: Cut) -> dict[str, SparseForm]:
        """Return the serving form of each table."""
        return {
            name: smallest_form(
                num_rows=its.shape[0],
                width=its.shape[1],
                num_kept=int(_reaches(self._best_of_row[name], cut.thresholds[name]).sum()),
                num_values=int(_reaches(its, cut.thresholds[name]).sum()),
            )
            for name, its in self._scores.items()
        }

    @functools.cached_property
    def _best_of_row(self) -> dict[str, Tensor]:
        return {name: its.amax(dim=1) for name, its in self._scores.items()}

    def _num_bytes(self, step: int) -> int:
        return sum(form.num_bytes for form in self.forms(self._cut(step)).values())

    def _cut(self, step: int) -> Cut:
        thresholds: dict[str, float] = {}
        for names, order in self._kinds:
            k = step * order.size // self._steps
            threshold = order.largest(k) if k else math.inf
            thresholds |= dict.fromkeys(names, threshold)
        return Cut(share=step / self._steps, thresholds=thresholds)


def whole(count: float) -> int:
    """Return a number of values rounded down, but for the rounding of the share it comes from."""
    return math.floor(count + 1e-6)


def magnitudes(weight: Tensor) -> Tensor:
    """Return |w| of a table (n, D) as scores."""
    return weight.abs().masked_fill_(weight == 0, NEVER)


def _reaches(scores: Tensor, threshold: float) -> Tensor:
    return (scores >= threshold) & (scores > NEVER)


def _find(counts: Tensor, k: int) -> tuple[int, int]:
    """Return the bin of the k-th largest, and which it is in that bin, counted from the top."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, k))
    before = int(from_top[place - 1]) if place else 0
    return counts.numel() - 1 - place, k - before


def _flipped(bits: Tensor) -> Tensor:
    """Return int32 bits of floats as integers of the same order, or the other way round."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
