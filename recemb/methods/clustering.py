"""K-means of points, and the nearest of some centroids.

Shapes: `S` points, `k` centroids, `Z` their width.
"""

import torch
from torch import Tensor

_CHUNK = 1 << 24
"""Distances that are held at once."""


def k_means(
    points: Tensor, num_centroids: int, *, iterations: int, generator: torch.Generator
) -> Tensor:
    """Return the centroids (k, Z) of Lloyd's algorithm, from points drawn without repetition.

    A centroid that no point is nearest to stays where it is.

    Args:
        points: (S, Z).
        num_centroids: k, at most S.
        iterations: at most so many; it ends before where no point changes its centroid.
        generator: on the CPU.
    """
    assert num_centroids <= points.shape[0]
    drawn = torch.randperm(points.shape[0], generator=generator)[:num_centroids]
    centroids = points[drawn.to(points.device)].clone()
    before = None
    for _ in range(iterations):
        which = nearest(points, centroids)
        if before is not None and torch.equal(which, before):
            break
        centroids = means(points, which, centroids)
        before = which
    return centroids


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Return which of the centroids (k, Z) is nearest to each of the points (S, Z), (S,) int64."""
    size = max(1, _CHUNK // centroids.shape[0])
    squares = centroids.square().sum(dim=1)
    # The square of a point is the same for all centroids.
    parts = [(squares - 2 * (its @ centroids.T)).argmin(dim=1) for its in torch.split(points, size)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=points.device)


def means(points: Tensor, groups: Tensor, otherwise: Tensor) -> Tensor:
    """Return the mean (k, Z) of the points of each group; `otherwise` (k, Z) where there are none.

    Args:
        points: (S, Z).
        groups: (S,) int64, each below k.
        otherwise: (k, Z).
    """
    counts = torch.bincount(groups, minlength=otherwise.shape[0]).unsqueeze(1)
    sums = torch.zeros_like(otherwise).index_add_(0, groups, points)
    return torch.where(counts > 0, sums / counts.clamp(min=1), otherwise)
