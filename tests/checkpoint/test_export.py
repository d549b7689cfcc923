"""The serving file holds every method's tables, byte for byte, and nothing that could execute."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.checkpoint.archive import DESCRIPTION, Archive
from recemb.checkpoint.export import MODEL, TABLES, Servable, export, load
from recemb.checkpoint.model_name import model_class, model_name, plain_settings
from recemb.data.batch import Batch
from recemb.data.column import CategoricalColumn, Columns, DenseColumn, LabelColumn
from recemb.data.encoder import RowEncoder
from recemb.ids.vocabulary import Vocabulary
from recemb.models.deepfm import DeepFM
from recemb.models.finalmlp import FinalMLP
from recemb.tables.full import full_tables
from recemb.tables.method import Budget, Method
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "embedding"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SIZES = {"a.b": 3000, "c d": 7, "tags": 40}
SPECS = [
    TableSpec(name=f"{name}{suffix}", num_embeddings=n, embedding_dim=width, feature_names=(name,))
    for suffix, width in (("", 16), (".first_order", 1))
    for name, n in SIZES.items()
]
SETTINGS = {"hidden_units": [8], "dropout": 0.5}
COLUMNS = Columns(
    label=LabelColumn(name="click"),
    dense=(DenseColumn(name="price", transform="standardise"),),
    categorical=(
        CategoricalColumn(name="a.b", encoding="hash", num_embeddings=3000),
        CategoricalColumn(name="c d"),
        CategoricalColumn(name="tags", encoding="ids", num_embeddings=40, is_multi_hot=True),
    ),
)
KEYS = np.array([5, -(2**63), 2**63 - 1, 0, 1, 2])


def encoder() -> RowEncoder:
    return RowEncoder(
        COLUMNS,
        vocabularies={"c d": Vocabulary(KEYS)},
        moments={"price": (0.1 + 0.2, 1 / 3)},
        seed=2**32 - 1,
    )


def servable(tables: Tables, **changes: Any) -> Servable:
    encodes = encoder()
    model = DeepFM(num_dense=1, embedding_dims=[16] * 3, **SETTINGS)
    named = {
        "tables": tables,
        "model": model,
        "model_settings": SETTINGS,
        "schema": encodes.schema,
        "encoder": encodes,
        "source": {"format": "text"},
        "facts": {"metrics": {"val/auc": 0.7, "val/gauc": float("nan")}},
    }
    return Servable(**{**named, **changes})


def trained_tables(name: str) -> Tables:
    method = instantiate(OmegaConf.load(FOLDER / f"{name}.yaml"))
    assert isinstance(method, Method)
    counts = {f: torch.arange(n).flip(0) for f, n in SIZES.items()}
    budgets = [Budget(ratio=ratio) for ratio in (0.1, 0.25, 0.5)]
    feasible = [b for b in budgets if method.plan(SPECS, counts, b).is_feasible]
    tables = method.build(
        SPECS,
        counts,
        feasible[0] if feasible else None,
        optimizer=TableOptimizer(),
        seed=1,
        device=torch.device("cpu"),
    )
    values = tables(batch().features).values()
    values.backward(torch.randn(values.shape))
    return tables.eval()


def batch() -> Batch:
    lengths = torch.cat([torch.ones(8, dtype=torch.int64), torch.tensor([0, 1, 2, 3])])
    ids = [torch.randint(3000, (4,)), torch.randint(7, (4,)), torch.randint(40, (6,))]
    features = KeyedJaggedTensor(keys=list(SIZES), values=torch.cat(ids), lengths=lengths)
    return Batch(dense=torch.randn(4, 1), features=features, labels=torch.zeros(4))


@pytest.mark.parametrize("name", NAMES)
def test_a_method_s_tables_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    tables = trained_tables(name)
    given = servable(tables)
    export(given, tmp_path / "model")
    found, inputs = load(tmp_path / "model"), batch()
    with torch.no_grad():
        expected = given.model.eval()(inputs.dense, tables(inputs.features))
    assert torch.equal(found.logits(inputs), expected)
    assert torch.equal(found.predict(inputs), torch.sigmoid(expected))
    assert not any(p.requires_grad for p in (*found.tables.parameters(), *found.model.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_member_less_its_header_has_the_serving_bytes(name: str, tmp_path: Path) -> None:
    tables = trained_tables(name)
    sizes = export(servable(tables), tmp_path / "model")
    data = Archive(tmp_path / "model").map(TABLES)
    header_bytes = 8 + int.from_bytes(data[:8].tobytes(), "little")
    assert sizes[TABLES] - header_bytes == tables.storage().serve_bytes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    export(servable(full_tables(SPECS)), tmp_path / "model")
    return tmp_path / "model"


def test_the_encoder_comes_back(path: Path) -> None:
    found = load(path).encoder
    assert found.columns == COLUMNS
    assert np.array_equal(found.vocabularies["c d"].keys, KEYS)
    assert found.moments == {"price": (0.1 + 0.2, 1 / 3)}
    assert found.seed == 2**32 - 1
    assert found.schema == encoder().schema


def test_figures_that_are_no_numbers_are_null(path: Path) -> None:
    assert load(path).facts["metrics"] == {"val/auc": 0.7, "val/gauc": None}


def test_there_is_no_pickle_in_the_file(path: Path) -> None:
    assert Archive(path).names() == (TABLES, MODEL, "encoder/1.npy")
    with zipfile.ZipFile(path) as opened:
        for name in opened.namelist():
            assert not opened.read(name).startswith(b"\x80")


def test_bounds_decide_about_ids_out_of_range(path: Path) -> None:
    inputs = batch()
    inputs.features.values()[0] = 3000
    with pytest.raises(ValueError, match=r"feature 'a\.b' has id 3000"):
        load(path).logits(inputs)
    clamped = load(path, bounds="clamp").logits(inputs)
    inputs.features.values()[0] = 2999
    assert torch.equal(clamped, load(path).logits(inputs))


def test_a_failed_export_leaves_the_file_that_was_there(path: Path) -> None:
    before = path.read_bytes()
    broken = servable(full_tables(SPECS), facts={"metrics": object()})
    with pytest.raises(TypeError):
        export(broken, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


class Foreign(DeepFM):
    """A model that is not recemb's."""


def test_a_model_of_another_package_is_refused(tmp_path: Path) -> None:
    model = Foreign(num_dense=1, embedding_dims=[16] * 3)
    with pytest.raises(ValueError, match=r"Foreign is no model of recemb\.models"):
        export(servable(full_tables(SPECS), model=model), tmp_path / "model")


@pytest.mark.parametrize("value", [{"_target_": "os.system"}, [object()], torch.nn.ReLU], ids=str)
def test_a_setting_that_is_not_plain_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match=r"model deepfm\.DeepFM: setting 'hidden_units'"):
        export(
            servable(full_tables(SPECS), model_settings={"hidden_units": value}),
            tmp_path / "model",
        )


def test_settings_may_be_lists_of_lists() -> None:
    assert model_class(model_name(FinalMLP)) is FinalMLP


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "deepfm", "deepfm.MLP", "ranking_model.nn", "nowhere.DeepFM", ""),
        *("deepfm.DeepFM.__init__", "..deepfm.DeepFM", "mlp.MLP", "deepfm.RankingModel"),
    ],
)
def test_nothing_but_a_model_of_the_package_has_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="there is no model"):
        model_class(name)


def redescribe(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the description in place, leaving every member and its checksum right."""
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    description = json.loads(contents[DESCRIPTION])
    change(description)
    contents[DESCRIPTION] = json.dumps(description).encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, content in contents.items():
            new.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model"].update(name="os.system"), "there is no model 'os.system'"),
        (lambda d: d["model"]["settings"].update(x=1), r"has no settings \['x'\]"),
        (lambda d: d["model"]["settings"].update(dropout={"a": "b"}), "setting 'dropout' is dict"),
        (lambda d: d["model"]["settings"].update(hidden_units=[9]), "weights are not those of"),
        (lambda d: d["model"].pop("name"), "description is not complete"),
        (lambda d: d.pop("tables"), "description is not complete"),
        (lambda d: d["tables"].update(form="pickle"), "form 'pickle' is not known"),
        (lambda d: d["tables"].pop("plan"), "form 'plan' is not described in full"),
        (lambda d: d["tables"]["plan"].update(format=9), "format 9 is not known"),
        (
            lambda d: d["tables"]["plan"]["tables"][0].update(num_rows=4000),
            r"'embedding_bags.a.b.weight' is \(3000, 16\)",
        ),
        (
            lambda d: d["tables"]["plan"]["tables"][1].update(name="other"),
            "there is no physical table 'c d'",
        ),
        (lambda d: d["encoder"]["columns"].update(dense=[]), "but the encoder makes 0"),
        (
            lambda d: d["encoder"]["columns"]["categorical"].pop(2),
            r"features \['tags'\], which nothing encodes",
        ),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(redescribe(path, change))


def test_an_unknown_form_of_computed_rows_is_refused(tmp_path: Path) -> None:
    export(servable(trained_tables("robe")), tmp_path / "model")

    def rename(description: dict[str, Any]) -> None:
        next(iter(description["tables"]["sources"].values()))["form"] = "os.system"

    with pytest.raises(ValueError, match=r"rows of the form 'os.system' are not known, only \["):
        load(redescribe(tmp_path / "model", rename))


def test_every_model_has_a_name() -> None:
    for file in (FOLDER.parent / "model").glob("*.yaml"):
        kind = get_class(OmegaConf.load(file)._target_)
        assert model_class(model_name(kind)) is kind


def test_settings_may_be_widths_by_column() -> None:
    settings = {"attention_dim": {"item": 2, "position": 6}}
    assert plain_settings("dare", settings) == settings
