"""Models over histories: trained, exported, and asked for rows that bring their histories along."""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from recemb.checkpoint.export import load
from recemb.checkpoint.scoring import ScoringModel
from recemb.cli.export import export_run
from recemb.cli.train import train
from recemb.data.prepared import Prepared
from recemb.models.ranking_model import RankingModel
from recemb.train.evaluation import score
from recemb.train.experiment import Trained

CONF = Path(__file__).resolve().parents[2] / "conf"
SEQUENCE_MODELS = [
    path.stem
    for path in sorted((CONF / "model").glob("*.yaml"))
    if not issubclass(get_class(OmegaConf.load(path)._target_), RankingModel)
]
UNKNOWN = 10**9
COLUMNS = ("item", "category", "item_history", "category_history")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def training(cache: Path) -> DictConfig:
    """Return the configuration of a run but for its folder and its model."""
    overrides = [
        *("data=synthetic_sequences", "data.num_users=40", "data.length=30", "data.num_items=300"),
        *("data.max_history=12", "data.num_positives=4", "optimizer=adam", "embedding_dim=4"),
        *("model=dnn", "model.hidden_units=[8]", "name=test", "logger=none", "progress=false"),
        *("trainer.batch_size=64", "trainer.max_steps=3", "trainer.num_threads=1"),
        f"paths.cache={cache}",
    ]
    GlobalHydra.instance().clear()
    with initialize_config_module("recemb.conf", version_base="1.3"):
        return compose("train", overrides=overrides)


@pytest.fixture(scope="module")
def exporting() -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_module("recemb.conf", version_base="1.3"):
        return compose("export")


def served(config: DictConfig, exporting: DictConfig, out: Path, **more: str) -> ScoringModel:
    export_run(OmegaConf.merge(exporting, {"run": config.paths.run, "out": str(out), **more}))
    return load(out)


def prepared_in(cache: Path) -> Prepared:
    return Prepared(next(cache.glob("*/manifest.json")).parent)


def raw_rows(prepared: Prepared) -> Iterator[list[Any]]:
    """Yield the test split as raw values: two of one column and two lists for each example."""
    batch = next(prepared.batches("test", batch_size=10**6))
    values = {}
    for name in ("item", "category"):
        keys = np.fromfile(prepared.folder / f"encoders/{name}.keys.i64", "<i8")
        known = dict(enumerate([UNKNOWN, *keys.tolist()]))
        for feature in (name, f"{name}_history"):
            lists = batch.features[feature].to_dense()
            values[feature] = [[known[i] for i in ids.tolist()] for ids in lists]
    for e in range(len(batch)):
        yield [values["item"][e][0], values["category"][e][0], *(values[c][e] for c in COLUMNS[2:])]


def write_text(path: Path, rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for item, category, *lists in rows:
            writer.writerow([item, category, *(";".join(map(str, values)) for values in lists)])
    return path


def probabilities(path: Path) -> np.ndarray:
    found: np.ndarray = pa.csv.read_csv(path).column("probability").to_numpy()
    return found.astype(np.float32)


def expected_of(ended: Trained, prepared: Prepared) -> np.ndarray:
    found = score(
        prepared.batches("test", batch_size=10**6),
        tables=ended.tables,
        model=ended.model,
        device=torch.device("cpu"),
    )
    return torch.sigmoid(torch.from_numpy(found.logits)).numpy()


@pytest.mark.parametrize("name", [*SEQUENCE_MODELS, "dnn"])
def test_rows_with_histories_get_the_trained_model_s_probabilities(
    name: str,
    cache: Path,
    training: DictConfig,
    exporting: DictConfig,
    tmp_path: Path,
    trained: Callable[[DictConfig], Trained],
) -> None:
    config = training.copy()
    config.model = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    config.model.hidden_units = [8]
    if "top_k" in config.model:
        config.model.top_k = 5
    config.paths.run = str(tmp_path / "run")
    ended = trained(config)
    model = served(config, exporting, tmp_path / "model.recemb")
    prepared = prepared_in(cache)
    rows = write_text(tmp_path / "rows.csv", list(raw_rows(prepared)))
    model.predict_file(rows, tmp_path / "scored.csv")
    assert np.array_equal(probabilities(tmp_path / "scored.csv"), expected_of(ended, prepared))


def test_a_method_for_each_role_is_trained_and_served(
    cache: Path,
    training: DictConfig,
    exporting: DictConfig,
    tmp_path: Path,
    trained: Callable[[DictConfig], Trained],
) -> None:
    config = training.copy()
    config.model = OmegaConf.load(CONF / "model" / "dare.yaml")
    config.embedding = OmegaConf.load(CONF / "embedding" / "per_role.yaml")
    config.embedding.attention = OmegaConf.load(CONF / "embedding" / "int8.yaml")
    config.embedding.representation = OmegaConf.load(CONF / "embedding" / "tt_rec.yaml")
    config.paths.run = str(tmp_path / "run")
    ended = trained(config)
    model = served(config, exporting, tmp_path / "model.recemb")
    prepared = prepared_in(cache)
    rows = write_text(tmp_path / "rows.csv", list(raw_rows(prepared)))
    model.predict_file(rows, tmp_path / "scored.csv")
    assert np.array_equal(probabilities(tmp_path / "scored.csv"), expected_of(ended, prepared))


@pytest.fixture(scope="module")
def dare(
    training: DictConfig, exporting: DictConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the serving file of a trained DARE."""
    folder = tmp_path_factory.mktemp("dare")
    config = training.copy()
    config.model = OmegaConf.load(CONF / "model" / "dare.yaml")
    config.model.attention_dim = {"item": 2}
    config.paths.run = str(folder / "run")
    train(config)
    served(config, exporting, folder / "model.recemb")
    served(config, exporting, folder / "small.recemb", post="int8")
    return folder


def test_lists_of_a_parquet_file_are_histories(dare: Path, cache: Path, tmp_path: Path) -> None:
    model, rows = load(dare / "model.recemb"), list(raw_rows(prepared_in(cache)))
    model.predict_file(write_text(tmp_path / "rows.csv", rows), tmp_path / "scored.csv")
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    model.predict_file(tmp_path / "rows.parquet", tmp_path / "scored.parquet")
    found = pa.parquet.read_table(tmp_path / "scored.parquet").column("probability").to_numpy()
    assert np.array_equal(found, probabilities(tmp_path / "scored.csv"))


def test_of_a_long_history_the_most_recent_behaviours_count(dare: Path, tmp_path: Path) -> None:
    recent = [[5, 9, 2, 7] * 3, [0, 1, 2, 3] * 3]
    longer = [[4, 4, *recent[0]], [1, 1, *recent[1]]]
    rows = write_text(tmp_path / "rows.csv", [[8, 2, *recent], [8, 2, *longer]])
    load(dare / "model.recemb").predict_file(rows, tmp_path / "scored.csv")
    short, long = probabilities(tmp_path / "scored.csv")
    assert short == long


def test_a_history_may_be_empty(dare: Path, tmp_path: Path) -> None:
    rows = write_text(tmp_path / "rows.csv", [[8, 2, [], []]])
    load(dare / "model.recemb").predict_file(rows, tmp_path / "scored.csv")
    assert 0 < probabilities(tmp_path / "scored.csv")[0] < 1


def test_histories_of_two_lengths_are_an_error_with_its_line(dare: Path, tmp_path: Path) -> None:
    rows = write_text(tmp_path / "rows.csv", [[8, 2, [1], [1]], [8, 2, [1, 2], [1]]])
    model = load(dare / "model.recemb")
    with pytest.raises(ValueError, match=r"rows\.csv:3: the histories have 2 values in 'item_hist"):
        model.predict_file(rows, tmp_path / "scored.csv")
    found = model.predict_file(rows, tmp_path / "scored.csv", on_bad_line="skip")
    assert (found.num_rows, found.num_bad) == (2, 1)


def test_a_missing_history_is_named(dare: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("item,category,item_history\n1,1,2;3\n")
    with pytest.raises(ValueError, match=r"the model needs columns \['category_history'\]"):
        load(dare / "model.recemb").predict_file(tmp_path / "rows.csv", tmp_path / "scored.csv")


def test_a_sequence_model_in_fewer_bits_is_smaller_and_scores(dare: Path, tmp_path: Path) -> None:
    rows = write_text(tmp_path / "rows.csv", [[8, 2, [1, 5], [1, 2]]])
    full, small = (load(dare / f"{name}.recemb") for name in ("model", "small"))
    full.predict_file(rows, tmp_path / "full.csv")
    small.predict_file(rows, tmp_path / "small.csv")
    assert small.tables.storage().serve_bytes < full.tables.storage().serve_bytes
    found = [probabilities(tmp_path / f"{name}.csv")[0] for name in ("full", "small")]
    assert found[0] == pytest.approx(found[1], abs=0.02)
