"""Attention of the target over its history.

Shapes: `B` examples, `L` places in a history, `H` sums, `D` width of all parts side by side.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, RoleKeys
from recemb.models.sequence.search import full_precision


def dot_scores(inputs: SequenceInputs, parts: Sequence[Part]) -> Tensor:
    """Return the scores (B, L): what and when are scaled apart, each by the root of its width.

        s = <[item; category], [item; category]_t> / sqrt(D_what) + <time, time_t> / sqrt(D_when)

    Source: DARE's released code; its paper writes one product over all parts.
    """
    total: Tensor | None = None
    with full_precision(inputs.lengths):
        for group in score_groups(parts):
            root = math.sqrt(sum(keys.dim for keys in group))
            for keys in group:
                # A product for each part: side by side they would be written once more.
                scores = products(inputs.vectors[keys.history], inputs.vectors[keys.target] / root)
                total = scores if total is None else total + scores
    assert total is not None
    return total


def products(history: Tensor, target: Tensor) -> Tensor:
    """Return the dot product (B, L) of each vector of `history` (B, L, D) with `target` (B, D)."""
    if torch.is_grad_enabled() and (history.requires_grad or target.requires_grad):
        apply: Callable[..., Tensor] = _Products.apply  # torch gives it no types
        return apply(history, target)
    return _products(history, target)


def _products(history: Tensor, target: Tensor) -> Tensor:
    # The other way round, (B, L, D) by (B, D, 1), is slower on a CPU where there are many examples.
    return torch.bmm(target.unsqueeze(1), history.transpose(1, 2)).squeeze(1)


class _Products(torch.autograd.Function):
    """`_products`, each of whose gradients is the quickest product, too.

    Autograd would return that of the history transposed, to be written once more by its reader.
    """

    @staticmethod
    def forward(ctx: Any, history: Tensor, target: Tensor) -> Tensor:
        """Return the products."""
        ctx.save_for_backward(history, target)
        return _products(history, target)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of both factors."""
        history, target = ctx.saved_tensors
        of_history = torch.bmm(grad.unsqueeze(2), target.unsqueeze(1))
        of_target = torch.bmm(grad.unsqueeze(1), history).squeeze(1)
        return of_history, of_target


def score_groups(parts: Sequence[Part]) -> list[list[RoleKeys]]:
    """Return the parts that are scaled together: those that say what, and those that say when."""
    groups = [[p.attention for p in parts if p.is_time is is_time] for is_time in (False, True)]
    return [group for group in groups if group]


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax (B, L) over the places of `mask`, 0 elsewhere; all 0 if there is none."""
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=1)
    # A row without any place is NaN all over, in the forward and in the backward pass.
    return torch.where(mask.any(dim=1, keepdim=True), weights, 0)


def weighted_sums(weights: Sequence[Tensor], *histories: Tensor) -> list[Tensor]:
    """Return the sums (B, D), or (B, H, D), that each of `weights` gives.

    One product for all weights: a history is read once, and its gradient written once.

    Args:
        weights: (B, L) or (B, H, L) each.
        histories: (B, L, D) of each part, or of all side by side.
    """
    stacked = torch.cat([w if w.dim() == 3 else w.unsqueeze(1) for w in weights], dim=1)
    sums = torch.cat([torch.bmm(stacked.to(its.dtype), its) for its in histories], dim=2)
    found = torch.split(sums, [1 if w.dim() == 2 else w.shape[1] for w in weights], dim=1)
    return [s if w.dim() == 3 else s.squeeze(1) for s, w in zip(found, weights, strict=True)]
