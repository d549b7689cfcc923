"""What happens to an id outside `[0, num_embeddings)`.

Shapes: `F` lookups, `B` examples, `N` ids.
"""

from collections import Counter
from typing import Literal, get_args

import torch
from torch import Tensor

from recemb.ids.hashing import hash_rows_torch, hash_seed
from recemb.tables.bags import Bags
from recemb.tables.layout import Slot

Bounds = Literal["error", "oov", "hash", "clamp"]

OOV_ID = 0
"""The id of out-of-vocabulary values, the same that data preparation gives them."""


class BoundsCheck:
    """Applies one policy to the ids of every batch, and counts what it changed.

    - error: raise, naming feature, table, value, number of rows and position.
    - oov: the id becomes OOV_ID.
    - hash: the id becomes its hash (`recemb.ids.hashing`, salted with the feature's name), a row of
      the table.
    - clamp: a negative id becomes 0, one that is too large the last row.

    One pass over the ids finds whether any is out of range; only then is more done. On CUDA the
    answer has to reach the host, so every lookup waits for it.

    Attributes:
        policy: the policy.
        counts: how many ids of each output key were out of range so far.

    Raises:
        ValueError: if the policy is unknown.
    """

    def __init__(self, policy: Bounds) -> None:
        if policy not in get_args(Bounds):
            raise ValueError(f"bounds must be one of {', '.join(get_args(Bounds))}, got '{policy}'")
        self.policy: Bounds = policy
        self.counts: Counter[str] = Counter()

    def apply(self, bags: Bags, slots: tuple[Slot, ...], limits: Tensor) -> Tensor:
        """Return the ids (N,), all in range.

        Args:
            bags: the ids of the F lookups.
            slots: the lookups.
            limits: (F,) number of rows of each.

        Raises:
            ValueError: if an id is out of range and the policy is "error".
        """
        if bags.values.numel() == 0 or _are_inside(bags, limits):
            return bags.values
        if self.policy == "error":
            raise ValueError(_describe(bags, slots))
        return self._repair(bags, slots)

    def _repair(self, bags: Bags, slots: tuple[Slot, ...]) -> Tensor:
        parts = []
        for slot, ids in zip(slots, torch.split(bags.values, bags.sizes), strict=True):
            num_rows = slot.table.num_embeddings
            outside = (ids < 0) | (ids >= num_rows)
            self.counts[slot.key] += int(outside.sum())
            match self.policy:
                case "oov":
                    parts.append(ids.masked_fill(outside, OOV_ID))
                case "hash":
                    parts.append(torch.where(outside, _hash(ids, slot), ids))
                case _:
                    parts.append(ids.clamp(0, num_rows - 1))
        return torch.cat(parts)


def _hash(ids: Tensor, slot: Slot) -> Tensor:
    seed = hash_seed(0, slot.feature)
    return hash_rows_torch(ids.long(), seed, slot.table.num_embeddings).to(ids.dtype)


def _are_inside(bags: Bags, limits: Tensor) -> bool:
    if bags.offsets is None:
        low, high = bags.values.view(limits.numel(), -1).aminmax(dim=1)
        return bool(((low >= 0) & (high < limits)).all())
    bounds = zip(torch.split(bags.values, bags.sizes), limits.tolist(), strict=True)
    return all(
        ids.numel() == 0 or (int(ids.min()) >= 0 and int(ids.max()) < limit)
        for ids, limit in bounds
    )


def _describe(bags: Bags, slots: tuple[Slot, ...]) -> str:
    """Return the message about the first id that is out of range."""
    for slot, ids in zip(slots, torch.split(bags.values, bags.sizes), strict=True):
        num_rows = slot.table.num_embeddings
        outside = ((ids < 0) | (ids >= num_rows)).nonzero().view(-1)
        if outside.numel():
            position = int(outside[0])
            return (
                f"table '{slot.table.name}': feature '{slot.feature}' has id {int(ids[position])} "
                f"at position {position} of its values, but the table has {num_rows} rows; "
                f"{outside.numel()} of {ids.numel()} ids are out of range; raise num_embeddings, "
                "or choose bounds oov, hash or clamp"
            )
    raise AssertionError("no id is out of range")
