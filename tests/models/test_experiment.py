"""Experiments have the networks and the settings of the publications that they stand for."""

import inspect
from pathlib import Path
from typing import Any, cast

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from recemb.train.settings import TrainerSettings

CONF = Path(__file__).parents[2] / "conf"
FRAPPE = {"num_dense": 0, "embedding_dims": [10] * 10}

VECTORS = 5389 * 10  # the benchmark's 5,389 rows of width 10
WEIGHTS = 5389
NORMED = 400  # a bias under a batch norm, which the benchmark keeps and which does nothing
# "Total number of parameters" of each published log, and what of it is not in our model.
PUBLISHED = {
    "lr": (5_390, WEIGHTS),
    "fm": (59_280, VECTORS + WEIGHTS),
    "wide_deep": (423_280, VECTORS + WEIGHTS + 3 * NORMED),
    "deepfm": (423_280, VECTORS + WEIGHTS + 3 * NORMED),
    # That version's log counts a second, unused MLP of 364,001 parameters.
    "dnn": (781_892, VECTORS + 3 * NORMED + 364_001),
    "ipnn": (433_491, VECTORS),
    "dcn": (418_591, VECTORS + 3 * NORMED),
    "dcnv2": (458_391, VECTORS + 3 * NORMED),
    "dlrm": (417_891, VECTORS + 3 * NORMED),
    # A bias per CIN map, which the paper's equation 6 does not have, and a second global bias.
    "xdeepfm": (429_809, VECTORS + WEIGHTS + 3 * NORMED + 64 + 1),
    "autoint": (306_051, VECTORS),
    "masknet": (571_691, VECTORS),
    # 5,399 rows, the gates' own tables of user and item, and one output bias for each stream.
    "finalmlp": (253_392, 53_990 + 9_560 + 40_840 + NORMED + 100 + 1),
}


def load(path: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the model's name, its composed keys and the experiment."""
    experiment = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path)))
    overrides = {k: v for entry in experiment["defaults"] for k, v in entry.items()}
    name = overrides["override /model"]
    keys = cast(
        "dict[str, Any]", OmegaConf.to_container(OmegaConf.load(CONF / f"model/{name}.yaml"))
    )
    unknown = set(experiment.get("model", {})) - set(keys)
    assert not unknown
    return name, keys | experiment.get("model", {}), experiment


EXPERIMENTS = [CONF / f"experiment/frappe_{name}.yaml" for name in PUBLISHED]
every_experiment = pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)


@every_experiment
def test_network_has_the_published_number_of_parameters(path: Path) -> None:
    name, keys, _ = load(path)
    model = get_class(keys.pop("_target_"))(**FRAPPE, **keys)
    published, elsewhere = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) == published - elsewhere


@every_experiment
def test_file_is_named_after_its_data_and_model(path: Path) -> None:
    name, _, experiment = load(path)
    assert path.stem == f"frappe_{name}"
    assert {"override /data": "frappe"} in experiment["defaults"]
    assert path.read_text().startswith(
        f"# @package _global_\n# recemb train experiment=frappe_{name}\n"
    )


@every_experiment
def test_tables_are_trained_as_the_benchmark_does(path: Path) -> None:
    _, _, experiment = load(path)
    assert experiment["embedding_dim"] == 10
    assert experiment["optimizer"]["tables"]["rows"] == "all"
    assert experiment["optimizer"]["tables"]["weight_decay"] > 0
    assert experiment["trainer"]["batch_size"] == 4096
    assert experiment["trainer"]["lr_plateau_factor"] == 0.1


@pytest.mark.parametrize("model", ["dare", "twin"])
@pytest.mark.parametrize("data", ["taobao", "tmall"])
def test_dares_own_data_are_trained_on_with_its_settings(data: str, model: str) -> None:
    """Feng et al., ICLR 2025, and the scripts of its released code."""
    GlobalHydra.instance().clear()
    with initialize_config_module("recemb.conf", version_base="1.3"):
        config = compose("train", overrides=[f"experiment={data}_{model}", "name=test"])
    assert config.data._target_.lower() == f"recemb.data.{data}.{data}"
    assert config.model._target_.lower() == f"recemb.models.sequence.{model}.{model}"
    assert (config.embedding_dim, config.init_std) == (16, 0.01)
    keys = ("top_k", "hidden_units", "auxiliary_units", "target_aware", "l2", "init_std")
    assert [config.model[key] for key in keys] == [20, [200, 80], [200], True, 1e-6, 0.01]
    tables, dense = config.optimizer.tables, config.optimizer.dense
    assert (tables.kind, tables.rows, tables.learning_rate) == ("adam", "all", 0.01)
    assert (dense._target_, dense.lr) == ("torch.optim.Adam", 0.01)
    settings = instantiate(config.trainer)
    assert isinstance(settings, TrainerSettings)
    assert (settings.batch_size, settings.max_epochs, settings.eval_every_steps) == (2048, 2, 150)
    assert (settings.monitor, settings.max_steps) == ("val/auc", None)
    protocol = ("max_history", "min_behaviours", "num_positives", "stride", "num_negatives")
    assert [config.data[key] for key in protocol] == [200, 210, 19, 5, 2]


EVERY = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EVERY)
def test_every_experiment_composes_and_says_how_it_is_run(experiment: str) -> None:
    text = (CONF / f"experiment/{experiment}.yaml").read_text()
    assert text.startswith(f"# @package _global_\n# recemb train experiment={experiment}")
    GlobalHydra.instance().clear()
    with initialize_config_module("recemb.conf", version_base="1.3"):
        config = compose("train", overrides=[f"experiment={experiment}", "name=test"])
    known = inspect.signature(get_class(config.model._target_).__init__).parameters
    assert set(config.model) - {"_target_"} <= set(known)
