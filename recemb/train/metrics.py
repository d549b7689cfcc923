"""Metrics of click models, exact, in float64.

Shapes: `N` examples.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from recemb.data.score import auc as exact_auc

Scores = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer] | npt.NDArray[np.floating]


def auc(scores: Scores, labels: Labels) -> float:
    """Return the area under the ROC curve, the Mann-Whitney statistic, ties counting half.

    It is the probability that a positive example scores above a negative one.

    Args:
        scores: (N,), any monotone transform of the probability.
        labels: (N,), 0 or 1.

    Returns:
        A number in [0, 1]; NaN if only one class is present.
    """
    positive = (np.asarray(labels) > 0.5).astype(np.uint8)
    return exact_auc(np.asarray(scores, dtype=np.float64), positive)


def gauc(scores: Scores, labels: Labels, groups: npt.NDArray[np.integer]) -> float:
    """Return the AUC within each group, averaged with the groups' sizes as weights.

    Groups of one class have no AUC and do not count (Zhu et al., "Optimized Cost per Click in
    Taobao Display Advertising", KDD 2017, section 5.1, with impressions as weights).

    Args:
        scores: (N,).
        labels: (N,), 0 or 1.
        groups: (N,), the group of each example, a user as a rule.

    Returns:
        A number in [0, 1]; NaN if no group has both classes.
    """
    positive = (np.asarray(labels) > 0.5).astype(np.float64)
    frame = pd.DataFrame({"group": groups, "positive": positive, "score": scores})
    frame["rank"] = frame.groupby("group", sort=False)["score"].rank(method="average")
    frame["rank_of_positive"] = frame["rank"] * frame["positive"]
    sums = frame.groupby("group", sort=False).agg(
        ranks=("rank_of_positive", "sum"), positives=("positive", "sum"), size=("positive", "size")
    )
    negatives = sums["size"] - sums["positives"]
    mixed = sums[(sums["positives"] > 0) & (negatives > 0)]
    if mixed.empty:
        return float("nan")
    pairs = mixed["positives"] * (mixed["size"] - mixed["positives"])
    area = (mixed["ranks"] - mixed["positives"] * (mixed["positives"] + 1) / 2) / pairs
    return float(np.average(area.to_numpy(), weights=mixed["size"].to_numpy()))


def log_loss(logits: Scores, labels: Labels) -> float:
    """Return the mean binary cross-entropy in nats, from logits (N,), without clipping."""
    x = np.asarray(logits, dtype=np.float64)
    y = np.asarray(labels, dtype=np.float64)
    return float(np.mean(np.logaddexp(0.0, x) - x * y))


def normalised_entropy(logits: Scores, labels: Labels) -> float:
    """Return the log loss over that of always predicting the mean label.

    Below 1 is better than the mean; NaN if only one class is present. Source: He et al., "Practical
    Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014, eq. 3.
    """
    rate = float(np.mean(labels))
    if rate in (0.0, 1.0):
        return float("nan")
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return float(log_loss(logits, labels) / entropy)


def calibration(logits: Scores, labels: Labels) -> float:
    """Return the mean predicted probability over the mean label.

    1 is calibrated; NaN without positives.
    """
    rate = float(np.mean(labels))
    if rate == 0.0:
        return float("nan")
    return float(np.mean(sigmoid(logits)) / rate)


def sigmoid(logits: Scores) -> npt.NDArray[np.float64]:
    """Return the probabilities (N,) of logits (N,), in float64."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def ranking_metrics(
    logits: Scores, labels: Labels, groups: npt.NDArray[np.integer] | None = None
) -> dict[str, float]:
    """Return auc, logloss, ne, calibration and, where there are groups, gauc."""
    values = {
        "auc": auc(logits, labels),
        "logloss": log_loss(logits, labels),
        "ne": normalised_entropy(logits, labels),
        "calibration": calibration(logits, labels),
    }
    if groups is not None:
        values["gauc"] = gauc(logits, labels, groups)
    return values
