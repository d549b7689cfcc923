"""Which blocks of trained rows are so alike that one may stand for another.

The distance of two blocks is what a share of their elements, 70 % in the published settings, differ
by at most. Blocks are taken in the order of their 75th percentiles; the nearest few by a random
projection are compared in full.

Shapes: `B` blocks, `V` values of a block, `M` blocks that are left.

Source: Zhou et al., "Serving Deep Learning Models with Deduplication from Relational Databases",
VLDB 2022; distance, order and settings as in the code of the VLDB 2024 study of Zhang et al.
Departures: the nearest by a random projection instead of buckets of L2-LSH, which have a width to
tune and hold as many candidates as chance will have it; to reach a number of blocks, the closest
pairs of all are merged first.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_PROJECTED = 64
_ORDER = 0.75
_CHUNK = 1 << 24
"""Values that are compared at once."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """When two blocks are alike.

    Attributes:
        share: of their elements that must be near.
        candidates: how many of the blocks before it a block is compared with.
        seed: of the projection.

    Raises:
        ValueError: on a number outside its range.
    """

    share: float = 0.7
    candidates: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.candidates < 1:
            raise ValueError(
                "similarity: share must be in (0, 1] and candidates at least 1, got "
                f"{self.share} and {self.candidates}"
            )

    def project(self, blocks: Tensor) -> Tensor:
        """Return blocks (B, V) in few dimensions, in which the near stay near."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(blocks.shape[1], _PROJECTED, generator=generator)
        return blocks @ drawn.to(blocks.device)

    def distances(self, blocks: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Return the distance (K,) of each pair of blocks.

        Args:
            blocks: (B, V).
            first: (K,) the one block of each pair.
            second: (K,) the other.
        """
        rank = _rank(blocks, self.share)
        size = max(1, _CHUNK // blocks.shape[1])
        parts = [
            (blocks[a] - blocks[b]).abs().kthvalue(rank, dim=1).values
            for a, b in zip(torch.split(first, size), torch.split(second, size), strict=True)
        ]
        return torch.cat(parts) if parts else blocks.new_empty(0)


def merge_alike(blocks: Tensor, similarity: Similarity, *, tolerance: float) -> Tensor:
    """Return the block (B,) int64 that stands for each block, at most `tolerance` away from it.

    In their order, blocks join the nearest of those that stay, if that is near enough.

    Args:
        blocks: (B, V).
        similarity: when two are alike.
        tolerance: the greatest distance.
    """
    owner = torch.arange(blocks.shape[0], device=blocks.device)
    projected, order = similarity.project(blocks), _order(blocks)
    stays = order[:1]
    for block in order[1:].unsqueeze(1):
        apart = (projected[stays] - projected[block]).square().sum(dim=1)
        count = min(similarity.candidates, stays.numel())
        near = stays[apart.topk(count, largest=False).indices]
        distance, best = similarity.distances(blocks, block.expand_as(near), near).min(dim=0)
        if float(distance) <= tolerance:
            owner[block] = near[best]
        else:
            stays = torch.cat([stays, block])
    return owner


def merge_closest(blocks: Tensor, similarity: Similarity, *, at_most: int) -> Tensor:
    """Return the block (B,) int64 that stands for each block, of which so many are left.

    In rounds, each block finds the nearest of those before it, in their order, and the closest
    pairs are merged, as many as it takes. Blocks that stand for others are moved, with them, only
    where nothing else is left to merge.

    Args:
        blocks: (B, V).
        similarity: when two are alike.
        at_most: how many are left, at least 1, where there are as many.
    """
    owner = torch.arange(blocks.shape[0], device=blocks.device)
    projected, order = similarity.project(blocks), _order(blocks)
    move_followers = False
    while True:
        left = order[(owner == torch.arange(owner.numel(), device=owner.device))[order]]
        most = left.numel() - at_most
        if most <= 0:
            return owner
        distance, target = _nearest(blocks, projected, left, similarity)
        has_followers = torch.bincount(owner, minlength=owner.numel()) > 1
        can_move = has_followers.logical_not() | move_followers
        merged = _merge(owner, left[1:], target, distance, can_move=can_move, most=most)
        move_followers |= merged == 0


def _merge(
    owner: Tensor,
    blocks: Tensor,
    targets: Tensor,
    distance: Tensor,
    *,
    can_move: Tensor,
    most: int,
) -> int:
    """Merge the closest of the pairs, each block once, `most` at most; return how many."""
    kept, gone = set(), set()
    for place in distance.argsort(stable=True).tolist():
        block, target = int(blocks[place]), int(targets[place])
        if bool(can_move[block]) and block not in kept and target not in gone:
            owner[owner == block] = target
            kept.add(target)
            gone.add(block)
        if len(gone) == most:
            break
    return len(gone)


def _nearest(
    blocks: Tensor, projected: Tensor, left: Tensor, similarity: Similarity
) -> tuple[Tensor, Tensor]:
    """Return the distance (M - 1,) of each block left but the first to one before it, and which."""
    apart = torch.cdist(projected[left], projected[left])
    is_before = torch.ones_like(apart, dtype=torch.bool).tril(-1)
    apart = apart.masked_fill(~is_before, torch.inf)[1:]
    count = min(similarity.candidates, left.numel() - 1)
    near, which = apart.topk(count, dim=1, largest=False)
    second = left[which]
    first = left[1:].unsqueeze(1).expand_as(second)
    found = similarity.distances(blocks, first.flatten(), second.flatten())
    # Of the first few blocks there are fewer before them.
    found = found.view(second.shape).masked_fill(near.isinf(), torch.inf)
    distance, best = found.min(dim=1)
    return distance, second.gather(1, best.unsqueeze(1)).squeeze(1)


def _order(blocks: Tensor) -> Tensor:
    """Return the blocks (B,) in the order of their 75th percentiles."""
    return blocks.kthvalue(_rank(blocks, _ORDER), dim=1).values.argsort(stable=True)


def _rank(blocks: Tensor, share: float) -> int:
    return max(1, math.ceil(blocks.shape[1] * share))
