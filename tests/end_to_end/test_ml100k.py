"""The experiments on MovieLens 100K compose and train, with whatever method."""

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from recemb.cli.train import method_of, method_settings, train
from recemb.data.movielens_release import GENRES_100K

CONF = Path(__file__).resolve().parents[2] / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("ml100k_*.yaml"))
METHODS = sorted(path.stem for path in (CONF / "embedding").glob("*.yaml"))
NUM_USERS, LENGTH, NUM_FILMS = 10, 70, 90


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with made-up ratings in the release's format."""
    root = tmp_path_factory.mktemp("data")
    folder, draw = root / "ml-100k", np.random.default_rng(0)
    folder.mkdir()
    ratings = [
        f"{user}\t{draw.integers(NUM_FILMS) + 1}\t{draw.integers(5) + 1}\t{1000 * time + user}\n"
        for user in range(1, NUM_USERS + 1)
        for time in range(LENGTH)
    ]
    (folder / "u.data").write_text("".join(ratings))
    users = [f"{u}|{20 + u}|F|artist|{10000 + u}\n" for u in range(1, NUM_USERS + 1)]
    (folder / "u.user").write_text("".join(users))
    films = [
        f"{i}|Film {i} (1990)|01-Jan-1990|||"
        + "|".join(str(int(g == i % 7)) for g in range(len(GENRES_100K)))
        for i in range(1, NUM_FILMS + 1)
    ]
    (folder / "u.item").write_text("\n".join([*films, ""]))
    return root


def composed(experiment: str, data: Path, *more: str) -> DictConfig:
    overrides = [
        *(f"experiment={experiment}", f"paths.data={data}", f"paths.cache={data}/cache"),
        *("name=test", "logger=none", "progress=false", "trainer.num_threads=1"),
        *("trainer.batch_size=64", "trainer.max_steps=3", *more),
    ]
    GlobalHydra.instance().clear()
    with initialize_config_module("recemb.conf", version_base="1.3"):
        return compose("train", overrides=overrides)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_trains_some_steps(experiment: str, data: Path, tmp_path: Path) -> None:
    summary = train(composed(experiment, data, f"paths.run={tmp_path}/run"))
    assert summary["steps"] == 3
    assert 0 <= summary["metrics"]["test/auc"] <= 1


def test_a_method_without_initial_deviation_trains_in_an_experiment_that_sets_one(
    data: Path, tmp_path: Path
) -> None:
    more = ["embedding=unified", "budget=0.5", f"paths.run={tmp_path}/run"]
    summary = train(composed("ml100k_dare", data, *more))
    assert summary["ratio"] <= 0.5


@pytest.fixture(scope="module")
def dare(data: Path) -> DictConfig:
    return composed("ml100k_dare", data)


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_up_the_experiment_s_initial_deviation(name: str, dare: DictConfig) -> None:
    config = dare.copy()
    config.embedding = OmegaConf.load(CONF / "embedding" / f"{name}.yaml")
    assert method_settings(config).get("init_std") in (None, config.init_std)
    assert ("init_std" in config.embedding) == ("init_std" in method_settings(config))
    method_of(config)


def test_a_deviation_of_the_method_s_own_stays(dare: DictConfig) -> None:
    config = dare.copy()
    config.embedding.init_std = 0.5
    assert method_settings(config).init_std == 0.5


def test_the_parts_of_a_method_take_it_up_too(dare: DictConfig) -> None:
    config = dare.copy()
    config.embedding = OmegaConf.load(CONF / "embedding" / "per_role.yaml")
    config.embedding.attention = OmegaConf.load(CONF / "embedding" / "int8.yaml")
    assert method_settings(config).attention.init_std == config.init_std
