import math

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from recemb.train.metrics import auc, calibration, gauc, log_loss, normalised_entropy, sigmoid

# float64 sums of at most 1000 terms.
TOLERANCE = 1e-12


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    labels = (generator.random(1000) < 0.3).astype(np.float32)
    # Rounding makes ties.
    logits = np.round(generator.normal(size=1000) + labels, 1).astype(np.float32)
    groups = generator.integers(0, 40, size=1000)
    return logits, labels, groups


def test_auc_equals_scikit_learn_with_ties(scored) -> None:
    logits, labels, _ = scored
    assert auc(logits, labels) == pytest.approx(roc_auc_score(labels, logits), abs=TOLERANCE)


def test_auc_of_constant_scores_is_half() -> None:
    assert auc(np.zeros(4), np.array([0, 1, 0, 1])) == 0.5


def test_auc_counts_ordered_pairs() -> None:
    # Of the four (positive, negative) pairs, only (0.35, 0.4) is in the wrong order.
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == 0.75


def test_auc_of_one_class_is_nan() -> None:
    assert math.isnan(auc(np.array([0.1, 0.2]), np.array([1, 1])))


def test_gauc_is_the_size_weighted_mean_of_group_aucs(scored) -> None:
    logits, labels, groups = scored
    areas, sizes = [], []
    for group in np.unique(groups):
        inside = groups == group
        if 0 < labels[inside].sum() < inside.sum():
            areas.append(roc_auc_score(labels[inside], logits[inside]))
            sizes.append(inside.sum())
    expected = np.average(areas, weights=sizes)
    assert gauc(logits, labels, groups) == pytest.approx(expected, abs=TOLERANCE)


def test_gauc_without_a_mixed_group_is_nan() -> None:
    assert math.isnan(gauc(np.array([0.1, 0.9]), np.array([0, 1]), np.array([1, 2])))


def test_log_loss_equals_scikit_learn(scored) -> None:
    logits, labels, _ = scored
    expected = sklearn_log_loss(labels, 1 / (1 + np.exp(-logits.astype(np.float64))))
    assert log_loss(logits, labels) == pytest.approx(expected, abs=TOLERANCE)


def test_log_loss_of_a_sure_mistake_is_the_logit() -> None:
    assert log_loss(np.array([200.0]), np.array([0.0])) == pytest.approx(200.0)


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist() == [0.0, 0.5, 1.0]


def test_the_mean_label_has_normalised_entropy_one() -> None:
    labels = np.array([1, 0, 0, 0])
    logits = np.full(4, math.log(0.25 / 0.75))
    assert normalised_entropy(logits, labels) == pytest.approx(1.0, abs=TOLERANCE)
    assert calibration(logits, labels) == pytest.approx(1.0, abs=TOLERANCE)


def test_calibration_is_predicted_over_observed() -> None:
    assert calibration(np.zeros(4), np.array([1, 0, 0, 0])) == pytest.approx(2.0)
