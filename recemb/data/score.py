"""How well known probabilities rank and fit labels: the reference figures of planted data."""

import numpy as np
from numpy.typing import NDArray


def auc(scores: NDArray[np.float64], labels: NDArray[np.uint8]) -> float:
    """Return the area under the ROC curve; NaN unless both labels occur.

    Args:
        scores: (N,), higher means more likely positive; equal scores count half.
        labels: (N,) 0 or 1.
    """
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    ranks = (ends - (sizes - 1) / 2)[group]  # mean rank, from 1, of each group of equal scores
    num_positive = int(labels.sum())
    num_negative = len(labels) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    surplus = ranks[labels == 1].sum() - num_positive * (num_positive + 1) / 2
    return float(surplus / (num_positive * num_negative))


def log_loss(probabilities: NDArray[np.float64], labels: NDArray[np.uint8]) -> float:
    """Return the mean negative log-likelihood in nats.

    Args:
        probabilities: (N,) in (0, 1).
        labels: (N,) 0 or 1.
    """
    chosen = np.where(labels == 1, probabilities, 1.0 - probabilities)
    return float(-np.log(chosen).mean())
