"""Behaviours whose origin is known."""

from pathlib import Path

import numpy as np
import pytest

from recemb.data.synthetic_sequences import CopyProcess, PlantedAttention, SyntheticSequences

SMALL = {"num_users": 40, "length": 60, "num_items": 600, "max_history": 20}


def draw(**settings) -> tuple[np.ndarray, np.ndarray]:
    return CopyProcess(**settings).draw(300, 80, np.random.default_rng(0))


def test_copies_of_the_behaviour_before_make_constant_categories() -> None:
    _, categories = draw(copy_probability=1.0, mean_lag=1.0, drift_probability=0.0)
    assert (categories == categories[:, :1]).all()


def test_a_drift_goes_to_another_category_of_the_triple() -> None:
    _, categories = draw(copy_probability=1.0, mean_lag=1.0, drift_probability=1.0)
    before, after = categories[:, :-1], categories[:, 1:]
    assert (before // 3 == after // 3).all()
    assert (before != after).all()


def test_without_copies_categories_have_the_background_shares() -> None:
    process = CopyProcess(copy_probability=0.0)
    _, categories = process.draw(2000, 50, np.random.default_rng(0))
    shares = np.bincount(categories.reshape(-1), minlength=60) / categories.size
    # Five standard deviations of the largest share over 100,000 draws.
    np.testing.assert_allclose(shares, process.background, atol=5 * (0.25 / 100_000) ** 0.5)


def test_items_lie_in_their_categories() -> None:
    items, categories = draw()
    assert (items // 40 == categories).all()


def test_a_category_recurs_after_a_lag_as_often_as_planted() -> None:
    """Beyond chance, lag 1 gives what is copied from there, directly, and hence is most."""
    process = CopyProcess(mean_lag=3.0, drift_probability=0.0, num_items=6000, num_categories=600)
    _, categories = process.draw(4000, 60, np.random.default_rng(0))
    recurs = [(categories[:, 40] == categories[:, 40 - lag]).mean() for lag in range(1, 30)]
    assert recurs[0] > 0.7 / 3
    assert recurs[0] > recurs[5] > recurs[20]


def test_chances_of_lags_are_those_of_a_geometric_distribution() -> None:
    chances = CopyProcess(mean_lag=4.0).lag_chances(200)
    np.testing.assert_allclose(chances[:3], [0.25, 0.1875, 0.140625])
    np.testing.assert_allclose(chances.sum(), 1, atol=1e-9)
    np.testing.assert_allclose((chances * np.arange(1, 201)).sum(), 4, atol=1e-9)


@pytest.fixture
def planted(tmp_path: Path) -> tuple[PlantedAttention, np.ndarray]:
    """Return the truth, and the raw category of each id."""
    data = SyntheticSequences(**SMALL, drift_probability=0.3, mean_lag=4.0)
    prepared = data.prepare(Path(), tmp_path / "set")
    keys = np.fromfile(prepared.folder / "encoders/category.keys.i64", "<i8")
    return PlantedAttention(prepared), keys


def test_relevance_is_the_chance_of_the_lag_times_that_of_the_step(planted) -> None:
    attention, keys = planted
    ids = {int(key): number for number, key in enumerate(keys, start=1)}
    history = np.array([[ids[3], ids[0], ids[2], ids[1], 0]])
    found = attention.relevance(history, np.array([4]), np.array([ids[1]]))
    chance = 0.25 * 0.75 ** np.arange(4)
    expected = [0, chance[2] * 0.15, chance[1] * 0.15, chance[0] * 0.7, 0]
    np.testing.assert_allclose(found[0], expected)


def test_a_category_without_an_id_is_related_to_none(planted) -> None:
    attention, keys = planted
    history = np.arange(len(keys) + 1)[None]
    found = attention.relevance(history, np.array([history.size]), np.array([0]))
    assert (found[0, 1:] == 0).all()


def test_users_of_all_parts_are_numbered_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recemb.data.synthetic_sequences._USERS_PER_PART", 16)
    parts = list(SyntheticSequences(**SMALL).parts())
    assert np.concatenate([part.users for part in parts]).tolist() == list(range(40))


def test_the_same_settings_give_the_same_files(tmp_path: Path) -> None:
    sets = [SyntheticSequences(**SMALL).prepare(Path(), tmp_path / str(i)) for i in range(2)]
    assert sets[0].manifest["files"] == sets[1].manifest["files"]
    assert sets[0].num_rows("train") == 40 * 8 * 3


def test_a_rank_without_examples_gets_a_batch_of_none(tmp_path: Path) -> None:
    prepared = SyntheticSequences(**SMALL).prepare(Path(), tmp_path / "set")
    none, one = (
        next(prepared.batches("train", batch_size=1, rank=rank, world_size=2)) for rank in (0, 1)
    )
    assert (len(none), len(one)) == (0, 1)
    assert none.features.keys() == one.features.keys()
    assert none.features.stride() == 0
    assert none.features.values().numel() == none.features.lengths().numel() == 0
    assert none.features["item_history"].to_dense() == []
    assert len(one.features["item_history"].to_dense()[0]) == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_categories": 61}, "multiple of 3"),
        ({"num_items": 2401}, "multiple of num_categories"),
        ({"copy_probability": 1.5}, "copy_probability must be in"),
        ({"mean_lag": 0.5}, "mean_lag must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        CopyProcess(**settings)
