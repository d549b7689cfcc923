"""The generator: deterministic, of the stated shape, with the stated best reachable figures."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from recemb.data import synthetic
from recemb.data.prepared import Prepared
from recemb.data.score import auc
from recemb.data.score import log_loss as our_log_loss
from recemb.data.synthetic import Synthetic

SMALL = {"num_train": 3000, "num_val": 500, "num_test": 20_000, "scale": 0.0001}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Synthetic(**SMALL).prepare(Path(), tmp_path_factory.mktemp("synthetic") / "out")


def columns(prepared: Prepared, split: str) -> tuple[np.ndarray, ...]:
    batch = next(prepared.batches(split, batch_size=10**6))
    ids = batch.features.values().view(26, -1)
    return batch.dense.numpy(), ids.numpy(), batch.labels.numpy()


def test_shape_is_criteos(prepared: Prepared) -> None:
    assert len(prepared.schema.dense) == 13
    assert len(prepared.schema.categorical) == 26
    assert [prepared.num_rows(s) for s in ("train", "val", "test")] == [3000, 500, 20_000]


def test_reference_is_sklearns_figure_for_the_true_probabilities(prepared: Prepared) -> None:
    data = Synthetic(**SMALL)
    model = data._planted_model()
    dense, ids, labels = columns(prepared, "test")
    probabilities = model.probabilities(ids.T.astype(np.int64), synthetic._standardised(dense))
    # Labels take part through the draw only, so they are the written ones.
    assert prepared.reference["test/auc"] == pytest.approx(roc_auc_score(labels, probabilities))
    assert prepared.reference["test/logloss"] == pytest.approx(log_loss(labels, probabilities))


def test_click_rate_is_the_one_asked_for(prepared: Prepared) -> None:
    # Standard error of 20,000 draws: 0.003, and the bias is fitted on 65,536 rows; five of them.
    assert abs(columns(prepared, "test")[2].mean() - 0.25) < 0.02


def test_the_same_seed_gives_the_same_files(prepared: Prepared, tmp_path: Path) -> None:
    again = Synthetic(**SMALL).prepare(Path(), tmp_path / "out")
    assert again.manifest["files"] == prepared.manifest["files"]


def test_a_larger_set_begins_with_the_smaller_one(prepared: Prepared, tmp_path: Path) -> None:
    larger = Synthetic(**{**SMALL, "num_train": 70_000}).prepare(Path(), tmp_path / "out")
    for small, large in zip(columns(prepared, "train"), columns(larger, "train"), strict=True):
        axis = 1 if small.shape[0] == 26 else 0
        np.testing.assert_array_equal(small, large.take(range(3000), axis=axis))


def test_another_seed_gives_other_rows_and_effects(prepared: Prepared, tmp_path: Path) -> None:
    other = Synthetic(**SMALL, seed=1).prepare(Path(), tmp_path / "out")
    assert other.reference["test/auc"] != prepared.reference["test/auc"]
    assert (columns(other, "train")[1] != columns(prepared, "train")[1]).any()


def test_frequencies_follow_the_power_law() -> None:
    uniform = np.random.default_rng(0).random(200_000)
    ranks = synthetic._power_law(uniform, 1000, 1.2)
    counts = np.bincount(ranks, minlength=1000)
    edges = np.arange(1, 1002) ** -0.2
    expected = -np.diff(edges) / (edges[0] - edges[-1]) * len(uniform)
    # The head's counts are thousands: five standard errors each.
    assert (np.abs(counts - expected)[:50] < 5 * np.sqrt(expected[:50])).all()


def test_without_signal_the_best_auc_is_one_half(tmp_path: Path) -> None:
    noise = Synthetic(**SMALL, logit_std=0).prepare(Path(), tmp_path / "out")
    assert noise.reference["test/auc"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("scale", 0), ("positive_rate", 1), ("logit_std", -1), ("seed", -1), ("num_val", 0)],
)
def test_argument_out_of_range_is_named(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=argument):
        Synthetic(**{**SMALL, argument: value})


def test_auc_and_log_loss_are_sklearns_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(1, 9, 500) / 10, rng.integers(0, 2, 500).astype(np.uint8)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert our_log_loss(scores, labels) == pytest.approx(log_loss(labels, scores))


def test_auc_of_one_class_is_not_a_number() -> None:
    assert np.isnan(auc(np.array([0.1, 0.2]), np.zeros(2, np.uint8)))
