"""Every method goes from raw files through training and a serving file to scores of raw rows."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from recemb.checkpoint.archive import Archive
from recemb.checkpoint.export import TABLES, load
from recemb.cli.export import export_run
from recemb.cli.plan import plan_of
from recemb.data.prepared import Prepared
from recemb.train.evaluation import score
from recemb.train.experiment import Trained

CONF = Path(__file__).resolve().parents[2] / "conf"
METHODS = sorted(path.stem for path in (CONF / "embedding").glob("*.yaml"))
BUDGETS = (0.3, 0.6, 0.9)
NUM_ROWS = {"train": 320, "val": 64, "test": 64}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three files with values of every kind, unseen ones in the last."""
    folder, draw = tmp_path_factory.mktemp("raw"), np.random.default_rng(0)
    for split, num_rows in NUM_ROWS.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["shop", "click", "price", "item", "tags", "size"])
            for _ in range(num_rows):
                item = draw.integers(400) + (1000 if split == "test" and draw.random() < 0.1 else 0)
                tags = "|".join(f"t{t}" for t in draw.integers(9, size=draw.integers(4)))
                shop = draw.choice(["", '"a, b"', "c", "d"])
                price = "" if draw.random() < 0.1 else f"{draw.lognormal():.3f}"
                rows.writerow([shop, draw.integers(2), price, item, tags, draw.normal()])
    return folder


def composed(name: str, overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_module("recemb.conf", version_base="1.3"):
        return compose(name, overrides=overrides)


@pytest.fixture(scope="module")
def training(raw: Path) -> DictConfig:
    """Return the configuration of a run but for its folder and its method."""
    return composed(
        "train",
        [
            *("data=table", f"data.raw={raw}", "data.label=click"),
            "data.split={rule: files}",
            "data.files={train: [train.csv], val: [val.csv], test: [test.csv]}",
            *("+data.dense={price: log, size: standardise}", "+data.categorical.shop=vocabulary"),
            "+data.categorical.item={encoding: hash, num_embeddings: 600}",
            "+data.categorical.tags={is_multi_hot: true}",
            *("model=deepfm", "model.hidden_units=[8]", "embedding_dim=8", "name=test"),
            *("logger=none", "progress=false", "trainer.num_threads=1", "trainer.batch_size=64"),
            *("trainer.max_steps=3", f"paths.cache={raw / 'cache'}"),
        ],
    )


@pytest.fixture(scope="module")
def exporting() -> DictConfig:
    """Return the configuration of an export but for its paths."""
    return composed("export", [])


def with_tightest_budget(config: DictConfig) -> DictConfig:
    """Return the configuration with the tightest of the budgets that its method can keep."""
    for budget in (*BUDGETS, None):
        config.budget = budget
        if budget is None or plan_of(config).is_feasible:
            break
    return config


def probabilities(path: Path) -> np.ndarray:
    with path.open(newline="") as file:
        return np.array([row["probability"] for row in csv.DictReader(file)], np.float32)


# Three steps end every search early.
@pytest.mark.filterwarnings("ignore::recemb.methods.pruned.EarlyEndWarning")
@pytest.mark.parametrize("method", METHODS)
def test_raw_rows_get_the_trained_model_s_probabilities(
    method: str,
    raw: Path,
    training: DictConfig,
    exporting: DictConfig,
    tmp_path: Path,
    trained: Callable[[DictConfig], Trained],
) -> None:
    # Composing costs more than all that follows; the method's file is what embedding=.. would read.
    config = training.copy()
    config.embedding = OmegaConf.load(CONF / "embedding" / f"{method}.yaml")
    config.paths.run = str(tmp_path / "run")
    ended = trained(with_tightest_budget(config))
    paths = {"run": str(tmp_path / "run"), "out": str(tmp_path / "model.recemb")}
    export_run(OmegaConf.merge(exporting, paths))
    model = load(tmp_path / "model.recemb")
    model.predict_file(raw / "test.csv", tmp_path / "scored.csv")
    prepared = Prepared(next(raw.glob("cache/*/manifest.json")).parent)
    expected = score(
        prepared.batches("test", batch_size=NUM_ROWS["test"]),
        tables=ended.tables,
        model=ended.model,
        device=torch.device("cpu"),
    )
    found = probabilities(tmp_path / "scored.csv")
    assert np.array_equal(found, torch.sigmoid(torch.from_numpy(expected.logits)).numpy())
    archive = Archive(tmp_path / "model.recemb")
    data = archive.map(TABLES)
    header_bytes = 8 + int.from_bytes(data[:8].tobytes(), "little")
    assert len(data) - header_bytes == ended.tables.storage().serve_bytes
