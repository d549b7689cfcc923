"""What happens to an id outside `[0, num_embeddings)`.

Shapes: `F` features, `B` examples, `N` ids.
"""

from collections import Counter
from typing import Literal, get_args

import torch
from torch import Tensor

from recemb.ids.hashing import hash_rows_torch, hash_seed
from recemb.tables.bags import Bags
from recemb.tables.lookup_plan import Output

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

    def apply(self, bags: Bags, outputs: tuple[Output, ...], limits: Tensor) -> Tensor:
        """Return the ids (N,), all in range.

        Args:
            bags: the ids of the F features.
            outputs: says for each feature what its ids are for.
            limits: (F, 2) int64, the least and the largest id that each may have.

        Raises:
            ValueError: if an id is out of range and the policy is "error".
        """
        if all(output.num_ids is None for output in outputs):
            return bags.values
        if bags.values.numel() == 0 or _are_inside(bags, limits):
            return bags.values
        if self.policy == "error":
            raise ValueError(_describe(bags, outputs))
        return self._repair(bags, outputs)

    def _repair(self, bags: Bags, outputs: tuple[Output, ...]) -> Tensor:
        parts = []
        for output, ids in zip(outputs, torch.split(bags.values, bags.sizes), strict=True):
            num_rows = output.num_ids
            if num_rows is None:
                parts.append(ids)
                continue
            outside = (ids < 0) | (ids >= num_rows)
            self.counts[output.key] += int(outside.sum())
            match self.policy:
                case "oov":
                    parts.append(ids.masked_fill(outside, OOV_ID))
                case "hash":
                    seed = hash_seed(0, output.feature)
                    hashed = hash_rows_torch(ids.long(), seed, num_rows).to(ids.dtype)
                    parts.append(torch.where(outside, hashed, ids))
                case _:
                    parts.append(ids.clamp(0, num_rows - 1))
        return torch.cat(parts)


def id_limits(outputs: tuple[Output, ...]) -> Tensor:
    """Return the least and the largest id of each output, (F, 2) int64."""
    every = torch.iinfo(torch.int64)
    return torch.tensor(
        [[every.min, every.max] if o.num_ids is None else [0, o.num_ids - 1] for o in outputs]
    )


def _are_inside(bags: Bags, limits: Tensor) -> bool:
    if bags.offsets is None:
        low, high = bags.values.view(limits.shape[0], -1).aminmax(dim=1)
        return bool(((low >= limits[:, 0]) & (high <= limits[:, 1])).all())
    bounds = zip(torch.split(bags.values, bags.sizes), limits.tolist(), strict=True)
    return all(
        ids.numel() == 0 or (int(ids.min()) >= low and int(ids.max()) <= high)
        for ids, (low, high) in bounds
    )


def _describe(bags: Bags, outputs: tuple[Output, ...]) -> str:
    """Return the message about the first id that is out of range."""
    for output, ids in zip(outputs, torch.split(bags.values, bags.sizes), strict=True):
        if output.num_ids is None:
            continue
        outside = ((ids < 0) | (ids >= output.num_ids)).nonzero().view(-1)
        if outside.numel():
            position = int(outside[0])
            return (
                f"table '{output.owner}': feature '{output.feature}' has id {int(ids[position])} "
                f"at position {position} of its values, but the table has {output.num_ids} rows; "
                f"{outside.numel()} of {ids.numel()} ids are out of range; raise num_embeddings, "
                "or choose bounds oov, hash or clamp"
            )
    raise AssertionError("no id is out of range")
