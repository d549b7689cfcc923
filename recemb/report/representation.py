"""What representations are worth: effective rank, and how well they tell labels apart.

Shapes: `n` examples, `W` width.
"""

import torch
from torch import Tensor

_EPS = 1e-7
_ITERATIONS = 30


def rank_me(vectors: Tensor) -> float:
    """Return the effective rank of `vectors` (n, W), from 1 to min(n, W).

        RankMe = exp(-sum p_k log p_k),   p_k = sigma_k / sum of sigma + 1e-7

    Source: Garrido et al., "RankMe", ICML 2023, equation 1.
    """
    values = torch.linalg.svdvals(vectors.double())
    shares = values / values.sum() + _EPS
    return float(torch.exp(-(shares * shares.log()).sum()))


def discriminability(vectors: Tensor, labels: Tensor, num_clusters: int, *, seed: int = 0) -> float:
    """Return the normalised mutual information of the clusters of `vectors` and the labels.

        NMI = I(C; Y) / ((H(C) + H(Y)) / 2)

    Clusters are those of k-means, begun by k-means++.

    Args:
        vectors: (n, W).
        labels: (n,), 0 or 1.
        num_clusters: of k-means.
        seed: of its beginning.

    Raises:
        ValueError: if there are fewer vectors than clusters.

    Source: Feng et al., "Long-Sequence Recommendation Models Need Decoupled Embeddings", ICLR 2025,
    section 5 (figure 10), whose released code plots this under the name of mutual information.
    """
    if not 1 <= num_clusters <= len(vectors):
        raise ValueError(
            f"discriminability: num_clusters must be in [1, {len(vectors)}], got {num_clusters}"
        )
    clusters = k_means(vectors, num_clusters, seed=seed)
    joint = torch.zeros(num_clusters, 2, dtype=torch.float64)
    joint.index_put_((clusters, labels.long()), torch.ones(()).double(), accumulate=True)
    joint /= joint.sum()
    entropies = _entropy(joint.sum(1)), _entropy(joint.sum(0))
    mutual = sum(entropies) - _entropy(joint.view(-1))
    mean = sum(entropies) / 2
    return max(0.0, mutual / mean) if mean > 0 else 0.0


def k_means(vectors: Tensor, num_clusters: int, *, seed: int = 0) -> Tensor:
    """Return the cluster (n,) of each vector (n, W).

    Source: Lloyd's algorithm, begun as in Arthur and Vassilvitskii, "k-means++", SODA 2007.
    """
    generator = torch.Generator().manual_seed(seed)
    points = vectors.float()
    first = int(torch.randint(len(points), (1,), generator=generator))
    centres = [points[first]]
    nearest = (points - centres[0]).square().sum(1)
    for _ in range(num_clusters - 1):
        shares = nearest if bool((nearest > 0).any()) else torch.ones_like(nearest)
        centres.append(points[int(torch.multinomial(shares, 1, generator=generator))])
        nearest = torch.minimum(nearest, (points - centres[-1]).square().sum(1))
    middle = torch.stack(centres)
    found = torch.cdist(points, middle).argmin(1)
    for _ in range(_ITERATIONS):
        counts = torch.bincount(found, minlength=num_clusters).clamp(min=1).unsqueeze(1)
        sums = torch.zeros_like(middle).index_add(0, found, points)
        middle = torch.where(
            torch.bincount(found, minlength=num_clusters).unsqueeze(1) > 0, sums / counts, middle
        )
        moved = torch.cdist(points, middle).argmin(1)
        if torch.equal(moved, found):
            break
        found = moved
    return found


def _entropy(shares: Tensor) -> float:
    present = shares[shares > 0]
    return float(-(present * present.log()).sum())
