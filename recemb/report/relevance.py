"""How well attention scores rank behaviours, given what they are really worth.

Shapes: `B` examples, `L` places in a history, `T` target categories, `C` categories, `P` positions.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

import torch
from torch import Tensor

_FLOOR = 1e-5
_BYTES_PER_COUNT = 16  # two counts by label, their sum and the bits


class CategoryBatch(NamedTuple):
    """Categories of some examples.

    Attributes:
        history: (B, L) ids, the oldest behaviour first, padded behind.
        lengths: (B,) behaviours of each history.
        target: (B,) ids.
        label: (B,) 0 or 1.
    """

    history: Tensor
    lengths: Tensor
    target: Tensor
    label: Tensor


def retrieval_ndcg(
    scores: Tensor,
    relevance: Tensor,
    is_valid: Tensor,
    k: int,
    *,
    ideal_k: int | None = None,
) -> Tensor:
    """Return the NDCG at `k` of each example's ranking (B,); NaN where nothing is relevant.

        DCG = sum over ranks r = 0 .. k - 1 of  relevance / log2(r + 2)

    Equal scores are ranked by place.

    Args:
        scores: (B, L).
        relevance: (B, L), not negative.
        is_valid: (B, L) which places hold a behaviour.
        k: ranks that count.
        ideal_k: ranks of the ideal ranking that it is divided by; None for `k`. DARE's released
            code divides by that at 20 whatever k is.

    Raises:
        ValueError: if k or ideal_k is below 1.
    """
    ideal_k = k if ideal_k is None else ideal_k
    if k < 1 or ideal_k < 1:
        raise ValueError(f"retrieval_ndcg: k must be at least 1, got {k} and {ideal_k}")
    gain = relevance.masked_fill(~is_valid, 0).double()
    ranked = scores.masked_fill(~is_valid, -torch.inf).sort(dim=1, descending=True, stable=True)
    return _dcg(gain.gather(1, ranked.indices), k) / _dcg(
        gain.sort(dim=1, descending=True).values, ideal_k
    )


def _dcg(gain: Tensor, k: int) -> Tensor:
    kept = gain[:, :k]
    return (kept / torch.log2(torch.arange(kept.shape[1], device=gain.device) + 2.0)).sum(1)


class MutualInformation:
    """What behaviours tell of the label: a relevance that no model has a part in.

        I(X; Y) in bits,    X: the behaviour at position p is of category c',    Y: the label

    estimated among the examples whose target is of category c, for each of some c. Positions count
    from the most recent behaviour, 1, backwards.

    Args:
        targets: (T,) ids of the target categories.
        joint: (T, C, P + 1, 2) examples with a behaviour of c' at p, by label; p = 0 is not used.
        totals: (T, 2) examples, by label.
        num_categories: how many categories are the target of any example; None for T.

    Attributes:
        targets: as given.
        num_categories: likewise.
        counts: (T, C, P + 1) examples with a behaviour of c' at p.

    Source: Feng et al., "Long-Sequence Recommendation Models Need Decoupled Embeddings", ICLR 2025,
    section 5 (figure 9) and its released code, which bounds counts from below by 1e-5.
    """

    def __init__(
        self, targets: Tensor, joint: Tensor, totals: Tensor, *, num_categories: int | None = None
    ) -> None:
        self.targets = targets
        self.num_categories = len(targets) if num_categories is None else num_categories
        self.counts = joint.sum(dim=3, dtype=torch.int32)
        self._bits = _bits(joint, totals)

    @classmethod
    def of(
        cls,
        batches: Callable[[], Iterable[CategoryBatch]],
        *,
        num_categories: int,
        max_history: int,
        min_rows: int = 700,
        max_targets: int | None = None,
        max_bytes: int = 16 * 2**30,
    ) -> Self:
        """Return the relevance that some examples, the training split as a rule, show.

        Args:
            batches: yields them, twice.
            num_categories: C.
            max_history: P.
            min_rows: a target category has at least so many of them.
            max_targets: of the target categories, so many of the most frequent at most; None for
                all, as DARE's released code has it.
            max_bytes: what the counts may take: C * P of them are held for each target category.

        Raises:
            ValueError: if they take more.
        """
        rows = torch.zeros(num_categories, dtype=torch.int64)
        for batch in batches():
            rows += torch.bincount(batch.target, minlength=num_categories)
        order = rows.argsort(descending=True, stable=True)[:max_targets]
        targets = order[rows[order] >= min_rows]
        bytes_each = _BYTES_PER_COUNT * num_categories * (max_history + 1)
        if len(targets) * bytes_each > max_bytes:
            raise ValueError(
                f"mutual information: {len(targets):,} target categories have min_rows={min_rows} "
                f"examples, and the counts of each take {bytes_each:,} bytes; raise min_rows until "
                f"at most {max_bytes // bytes_each:,} are left, or set max_targets to that"
            )
        number = torch.full((num_categories,), -1)
        number[targets] = torch.arange(len(targets))
        shape = (len(targets), num_categories, max_history + 1, 2)
        joint, totals = torch.zeros(shape, dtype=torch.int32), torch.zeros(len(targets), 2)
        for batch in batches():
            is_kept = number[batch.target] >= 0
            which, label = number[batch.target][is_kept], batch.label[is_kept].long()
            totals.index_put_((which, label), torch.ones(()), accumulate=True)
            history, positions, is_valid = _placed(batch.history[is_kept], batch.lengths[is_kept])
            examples = torch.arange(len(which)).unsqueeze(1).expand_as(history)[is_valid]
            places = (which[examples], history[is_valid], positions[is_valid], label[examples])
            joint.index_put_(places, torch.ones((), dtype=torch.int32), accumulate=True)
        return cls(targets, joint, totals, num_categories=int((rows > 0).sum()))

    def relevance(self, batch: CategoryBatch) -> Tensor:
        """Return the bits (B, L) of each behaviour; 0 where the target or the place is unknown."""
        return self._looked_up(self._bits, batch)

    def is_reliable(
        self, batch: CategoryBatch, *, min_joint: int = 50, max_rare: int = 20
    ) -> Tensor:
        """Return for which examples (B,) the estimates rest on enough counts.

        Args:
            batch: the examples.
            min_joint: a behaviour is rare if fewer examples have one of its category at its place.
            max_rare: rare behaviours that an example may have.
        """
        counts = self._looked_up(self.counts, batch)
        _, _, is_valid = _placed(batch.history, batch.lengths)
        rare = (is_valid & (counts < min_joint)).sum(1)
        return torch.isin(batch.target, self.targets) & (rare <= max_rare)

    def _looked_up(self, table: Tensor, batch: CategoryBatch) -> Tensor:
        history, positions, is_valid = _placed(batch.history, batch.lengths)
        is_known = torch.isin(batch.target, self.targets)
        if not len(self.targets):
            return table.new_zeros(history.shape)
        is_same = batch.target.unsqueeze(1) == self.targets
        which = is_same.int().argmax(1, keepdim=True).expand_as(history)
        inside = positions.clamp(0, table.shape[2] - 1)
        found = table[which, history, inside]
        is_found = is_valid & is_known.unsqueeze(1) & (positions < table.shape[2])
        return torch.where(is_found, found, 0)


def _placed(history: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return histories (B, L), how long ago each place is, and which places hold a behaviour."""
    positions = lengths.unsqueeze(1) - torch.arange(history.shape[1])
    return history, positions, positions > 0


def _bits(joint: Tensor, totals: Tensor) -> Tensor:
    """Return I(X; Y) (T, C, P + 1) of the counts with X = 1 (T, C, P + 1, 2) and of all (T, 2)."""
    found = torch.empty(joint.shape[:3])
    # One target at a time: its shares take four times its counts.
    for which, (with_it, whole) in enumerate(zip(joint, totals.double(), strict=True)):
        # Along the last two dimensions X and Y.
        counts = torch.stack([whole - with_it, with_it], dim=2).clamp(min=_FLOOR)
        shares = counts / whole.sum()
        independent = shares.sum(3, keepdim=True) * shares.sum(2, keepdim=True)
        found[which] = (shares * (shares / independent).log2()).sum((2, 3)).clamp(min=0)
    return found
