"""Blocks of rows, taken apart.

Shapes: `N` rows of a block, `D` its width, `n` rows of a piece.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def split_rows(block: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the pieces (n, D) of a block (N, D), as torch.split does.

    The backward pass joins their gradients. So does that of torch.split, but element by element if
    a single piece's gradient is strided.
    """
    if len(sizes) == 1:
        return (block,)
    if not (torch.is_grad_enabled() and block.requires_grad):
        return torch.split(block, list(sizes))
    apply: Callable[..., tuple[Tensor, ...]] = _Split.apply  # torch gives it no types
    return apply(block, list(sizes))


class _Split(torch.autograd.Function):
    """torch.split along the first dimension."""

    @staticmethod
    def forward(ctx: Any, block: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        """Return the pieces."""
        ctx.set_materialize_grads(False)
        ctx.sizes, ctx.width, ctx.like = sizes, block.shape[1], block.new_empty(0)
        return torch.split(block, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        """Return the gradient (N, D)."""
        if all(grad is None for grad in grads):
            return None, None
        pieces = [
            ctx.like.new_zeros(size, ctx.width) if grad is None else grad.contiguous()
            for grad, size in zip(grads, ctx.sizes, strict=True)
        ]
        return torch.cat(pieces), None
