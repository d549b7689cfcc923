"""Attention of the target over its history.

Shapes: `B` examples, `L` places in a history, `H` sums, `D` width of all parts side by side.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, RoleKeys


def dot_scores(inputs: SequenceInputs, parts: Sequence[Part]) -> Tensor:
    """Return the scores (B, L): what and when are scaled apart, each by the root of its width.

        s = <[item; category], [item; category]_t> / sqrt(D_what) + <time, time_t> / sqrt(D_when)

    Source: DARE's released code; its paper writes one product over all parts.
    """
    total: Tensor | None = None
    for keys in score_groups(parts):
        scores = torch.bmm(inputs.history(keys), inputs.target(keys).unsqueeze(2)).squeeze(2)
        scores = scores / math.sqrt(sum(k.dim for k in keys))
        total = scores if total is None else total + scores
    assert total is not None
    return total


def score_groups(parts: Sequence[Part]) -> list[list[RoleKeys]]:
    """Return the parts that are scaled together: those that say what, and those that say when."""
    groups = [[p.attention for p in parts if p.is_time is is_time] for is_time in (False, True)]
    return [group for group in groups if group]


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax (B, L) over the places of `mask`, 0 elsewhere; all 0 if there is none."""
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=1)
    # A row without any place is NaN all over, in the forward and in the backward pass.
    return torch.where(mask.any(dim=1, keepdim=True), weights, 0)


def weighted_sums(weights: Sequence[Tensor], history: Tensor) -> list[Tensor]:
    """Return the sums (B, D), or (B, H, D), that each of `weights` gives.

    One product for all: the history is read once, and its gradient written once.

    Args:
        weights: (B, L) or (B, H, L) each.
        history: (B, L, D).
    """
    blocks = [w if w.dim() == 3 else w.unsqueeze(1) for w in weights]
    sums = torch.bmm(torch.cat(blocks, dim=1).to(history.dtype), history)
    found = torch.split(sums, [block.shape[1] for block in blocks], dim=1)
    return [s if w.dim() == 3 else s.squeeze(1) for s, w in zip(found, weights, strict=True)]
