"""HotSketch: which ids of a stream matter most, found in a memory of a few slots for each of them.

Keys hash to buckets of four slots, each with a key, a score and a row. A key that is there adds to
its score; one that is not takes the slot of the lowest score without a row, and inherits that score
(SpaceSaving), so that ids of much importance cannot be missed. A key whose score reaches the
threshold gets one of the rows while there are any left.

A batch is taken at once: its new keys are tried in the order of their values, the r-th of a bucket
at the bucket's r-th lowest slot; those for which no slot is left are forgotten.

Shapes: `U` distinct keys, `K` buckets of `S` slots.

Source: Zhang et al., "CAFE: Towards Compact, Adaptive, and Fast Embedding for Large-scale
Recommendation Models", SIGMOD 2024, section 3.2; Metwally et al., "Efficient Computation of
Frequent and Top-k Elements in Data Streams", ICDT 2005.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.kernels.hashing import reference
from recemb.tables.listed import MARKED, NO_KEY, UNMARKED, find_slots
from recemb.tables.named_tensors import NamedTensors

NUM_SLOTS = 4
_FULL = 10
"""Scores decay once their sum is above so many thresholds for each bucket."""
_CROWDED = 1.2
"""The threshold rises once so many keys for each row reach it."""
_RESCALE = 1e4
"""Weights that grew beyond this are brought back to 1, with all scores."""


@dataclass(frozen=True, kw_only=True)
class SketchRules:
    """How scores become rows.

    Attributes:
        threshold: the score that gets a row, at first.
        adapts: whether the threshold rises to the score of the last key that has room, once many
            more reach it; else scores decay once they are large.
        decay: factor of all scores when they decay.
        growth: factor of the weight of what is added, from update to update.
        mark_share: keys that reach this share of the threshold are marked.

    Raises:
        ValueError: on a number out of its range.
    """

    threshold: float
    adapts: bool = False
    decay: float = 0.99
    growth: float = 1.0
    mark_share: float = 0.5

    def __post_init__(self) -> None:
        if not self.threshold > 0 or not 0 < self.decay < 1 or not 1 <= self.growth <= 2:
            raise ValueError(
                "CAFE: threshold must be positive, decay in (0, 1) and growth in [1, 2], got "
                f"{self.threshold}, {self.decay} and {self.growth}"
            )
        if not 0 < self.mark_share <= 1:
            raise ValueError(f"CAFE: mark_share must be in (0, 1], got {self.mark_share}")


class HotSketch:
    """A view of the tensors of a sketch; it has no state but theirs.

    Args:
        buffers: hold `NAME.keys` and `NAME.rows` (K, S), `NAME.scores` (K, S) float32, and
            `NAME.clock` (2,) float64, the threshold and the weight of what is added.
        name: see above.
        num_rows: rows that may be given out.
        num_marks: marks that may be given out; 0 for none.
        seed: of the hash of keys.
        rules: how scores become rows.
    """

    def __init__(
        self,
        buffers: NamedTensors,
        name: str,
        *,
        num_rows: int,
        num_marks: int,
        seed: int,
        rules: SketchRules,
    ) -> None:
        self._buffers = buffers
        self.name = name
        self.num_rows = num_rows
        self.num_marks = num_marks
        self.seed = seed
        self.rules = rules

    @staticmethod
    def empty(
        name: str, *, num_rows: int, key_dtype: torch.dtype, rules: SketchRules
    ) -> dict[str, Tensor]:
        """Return the tensors of a sketch without keys, of as many buckets as there are rows."""
        shape = (num_rows, NUM_SLOTS)
        return {
            f"{name}.keys": torch.full(shape, NO_KEY, dtype=key_dtype),
            f"{name}.rows": torch.full(shape, UNMARKED, dtype=torch.int32),
            f"{name}.scores": torch.zeros(shape),
            f"{name}.clock": torch.tensor([rules.threshold, 1.0], dtype=torch.float64),
        }

    @property
    def keys(self) -> Tensor:
        """Return the keys (K, S)."""
        return self._buffers[f"{self.name}.keys"]

    @property
    def rows(self) -> Tensor:
        """Return the rows (K, S)."""
        return self._buffers[f"{self.name}.rows"]

    @property
    def scores(self) -> Tensor:
        """Return the scores (K, S)."""
        return self._buffers[f"{self.name}.scores"]

    @property
    def clock(self) -> Tensor:
        """Return the threshold and the weight (2,)."""
        return self._buffers[f"{self.name}.clock"]

    @property
    def threshold(self) -> float:
        """Return the score that gets a row."""
        return float(self.clock[0])

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add values (U,) to the scores of distinct keys (U,) int64."""
        values = (values * self.clock[1]).float()
        slots, _ = find_slots(self.keys, self.rows, keys, self.seed)
        is_in = slots >= 0
        self.scores.view(-1)[slots[is_in]] += values[is_in]
        if not bool(is_in.all()):
            self._replace(keys[~is_in], values[~is_in])

    def candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the slots that are to get rows, their keys, and those rows, (n,) each.

        The highest scores come first; there are as many as rows are free.
        """
        rows, scores = self.rows.view(-1), self.scores.view(-1)
        waiting = ((scores >= self.threshold) & (rows < 0)).nonzero().view(-1)
        if waiting.numel():
            waiting = waiting[torch.sort(scores[waiting], descending=True, stable=True).indices]
            used = torch.zeros(self.num_rows, dtype=torch.bool, device=rows.device)
            used[rows[rows >= 0].long()] = True
            free = (~used).nonzero().view(-1)
            waiting = waiting[: free.numel()]
            return waiting, self.keys.view(-1)[waiting].long(), free[: waiting.numel()]
        return waiting, waiting, waiting

    def give(self, slots: Tensor, rows: Tensor) -> None:
        """Give rows (n,) to slots (n,)."""
        self.rows.view(-1)[slots] = rows.int()

    def age(self) -> None:
        """Let scores decay, or the threshold rise; take rows away that are no longer deserved."""
        clock, scores, rows, rules = self.clock, self.scores, self.rows, self.rules
        if rules.adapts:
            num_over = int((scores >= self.threshold).sum())
            if num_over > _CROWDED * self.num_rows:
                clock[0] = scores.view(-1).topk(self.num_rows).values[-1].double()
        elif float(scores.sum(dtype=torch.float64)) > _FULL * rows.shape[0] * self.threshold:
            scores.mul_(rules.decay)
        clock[1] *= rules.growth
        if float(clock[1]) > _RESCALE:
            scores.div_(float(clock[1]))
            clock[0] /= float(clock[1])
            clock[1] = 1.0
        rows.masked_fill_((rows >= 0) & (scores < self.threshold), UNMARKED)

    def mark(self) -> None:
        """Mark the keys without rows whose scores are highest, as many as there are marks."""
        if not self.num_marks:
            return
        rows, scores = self.rows.view(-1), self.scores.view(-1)
        limit = self.rules.mark_share * self.threshold
        rows.masked_fill_((rows == MARKED) & (scores < limit), UNMARKED)
        waiting = ((rows == UNMARKED) & (scores >= limit)).nonzero().view(-1)
        left = self.num_marks - int((rows == MARKED).sum())
        order = torch.sort(scores[waiting], descending=True, stable=True).indices
        rows[waiting[order[: max(0, left)]]] = MARKED

    def listed(self) -> tuple[Tensor, Tensor]:
        """Return the keys that have rows, in their order, and their rows, int64."""
        rows = self.rows.view(-1)
        slots = (rows >= 0).nonzero().view(-1)
        keys, order = torch.sort(self.keys.view(-1)[slots])
        return keys, rows[slots[order]].long()

    def marked(self) -> Tensor:
        """Return the keys that are marked, in their order."""
        return self.keys.view(-1)[self.rows.view(-1) == MARKED].sort().values

    def _replace(self, keys: Tensor, values: Tensor) -> None:
        """Put new keys in the place of those of the lowest scores; see the module."""
        order = torch.sort(values, descending=True, stable=True).indices
        keys, values = keys[order], values[order]
        bucket = reference.hash_rows(keys, self.seed, self.keys.shape[0])
        bucket, order = torch.sort(bucket, stable=True)
        keys, values = keys[order], values[order]
        _, place, counts = torch.unique_consecutive(bucket, return_inverse=True, return_counts=True)
        rank = (
            torch.arange(bucket.numel(), device=bucket.device) - (counts.cumsum(0) - counts)[place]
        )
        is_tried = rank < NUM_SLOTS
        bucket, rank = bucket[is_tried], rank[is_tried]
        scores = self.scores[bucket].masked_fill(self.rows[bucket] >= 0, math.inf)
        lowest, slot = torch.sort(scores, dim=1, stable=True)
        found, at = (t.gather(1, rank.unsqueeze(1)).squeeze(1) for t in (lowest, slot))
        is_open = found < math.inf
        slots = (bucket * NUM_SLOTS + at)[is_open]
        self.keys.view(-1)[slots] = keys[is_tried][is_open].to(self.keys.dtype)
        self.scores.view(-1)[slots] = found[is_open] + values[is_tried][is_open]
        self.rows.view(-1)[slots] = UNMARKED
