"""The cells of a sweep."""

from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from recemb.cli.cell import Cell, cells_of, compose_cell, quoted

CONF = Path(__file__).resolve().parents[2] / "conf"


def sweep(**changes: Any) -> dict[str, Any]:
    return {"methods": ["hash"], "budgets": [0.5], "seeds": [1], "overrides": [], **changes}


def test_every_method_meets_every_budget_and_seed() -> None:
    cells = cells_of(sweep(methods=["hash", "ce"], budgets=[0.5, None], seeds=[1, 2]))
    assert [(c.label, c.budget, c.seed) for c in cells] == [
        (method, budget, seed)
        for method in ("hash", "ce")
        for budget in (0.5, None)
        for seed in (1, 2)
    ]


def test_a_cell_is_told_of_sweep_then_line_then_itself() -> None:
    method = {"embedding": "hash", "overrides": ["embedding.hashing=modulo"]}
    (cell,) = cells_of(sweep(methods=[method], overrides=["model=lr"]), common=["embedding_dim=5"])
    assert cell.overrides == (
        *("model=lr", "embedding_dim=5", "embedding=hash", "budget=0.5", "seed=1"),
        "embedding.hashing=modulo",
    )


def test_without_a_budget_none_is_set() -> None:
    (cell,) = cells_of(sweep(budgets=[None]))
    assert not any(word.startswith("budget") for word in cell.overrides)


def test_all_is_every_method_that_is_not_listed_by_itself() -> None:
    labels = [c.label for c in cells_of(sweep(methods=[{"embedding": "full"}, "all"]))]
    assert labels[0] == "full"
    assert sorted(labels) == sorted(path.stem for path in (CONF / "embedding").glob("*.yaml"))


def test_a_method_may_have_its_own_budgets_and_occur_twice_under_labels() -> None:
    methods = [
        {"embedding": "hash", "label": "mixed"},
        {"embedding": "hash", "label": "modulo", "budgets": [0.1, 0.2]},
    ]
    cells = cells_of(sweep(methods=methods))
    assert [(c.label, c.budget) for c in cells] == [
        ("mixed", 0.5),
        ("modulo", 0.1),
        ("modulo", 0.2),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["hash", "hash"]}, "hash, budget 0.5, seed 1 occurs twice"),
        ({"methods": ["hsh"]}, "there is no method 'hsh'"),
        ({"methods": [{"embedding": "hash", "budget": [1]}]}, r"has no key \['budget'\]"),
        ({"method": ["hash"]}, r"has no key \['method'\]"),
        ({"seeds": []}, "there is no cell"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cells_of(sweep(**changes))


@pytest.mark.parametrize("path", sorted((CONF / "sweep").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_cells_of_a_sweep_that_is_shipped_compose(path: Path) -> None:
    given = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(given, dict)
    named = {str(k): v for k, v in given.items()}
    # The cells of one entry differ in names and numbers only.
    cells = [cells_of({**named, "methods": [entry]})[-1] for entry in named["methods"]]
    assert all(compose_cell(cell).config.seed == cell.seed for cell in cells)
    assert path.read_text().startswith(f"# recemb sweep sweep={path.stem}")


def composed(*words: str) -> str:
    return compose_cell(Cell(label="x", budget=None, seed=1, overrides=words)).hash


def test_paths_and_loggers_do_not_make_another_run() -> None:
    assert composed() == composed("paths.run=elsewhere", "logger=none", "progress=false")


def test_whatever_shapes_the_result_makes_another_folder(tmp_path: Path) -> None:
    hashes = [composed(*words) for words in ((), ("model=lr",), ("budget=0.5",), ("seed=3",))]
    assert len(set(hashes)) == 4
    cell = Cell(label="a/b, c", budget=0.5, seed=3, overrides=("seed=3",))
    assert cell.folder(tmp_path, hashes[3]) == tmp_path / "runs" / f"a_b_c-0.5-3-{hashes[3]}"


def test_a_run_s_folder_is_the_cell_s_with_the_hash(tmp_path: Path) -> None:
    found = compose_cell(Cell(label="x", budget=None, seed=1, overrides=()))
    assert found.folder(tmp_path) == found.cell.folder(tmp_path, found.hash)


def test_a_misspelt_override_is_an_error() -> None:
    with pytest.raises(HydraException):
        composed("trainer.max_stepps=1")


@pytest.mark.parametrize("text", ["a b", "it's", "x=1,2", "[y]", "back\\slash", "ünï"])
def test_any_text_can_be_quoted(text: str) -> None:
    cell = Cell(label="x", budget=None, seed=1, overrides=(quoted("paths.data", text),))
    assert compose_cell(cell).config.paths.data == text


@pytest.mark.parametrize(("word", "key"), [("embedding=hash", "methods"), ("seed=3", "seeds")])
def test_what_a_sweep_varies_is_not_overridden_for_all(word: str, key: str) -> None:
    with pytest.raises(ValueError, match=rf"{word} is for one run; a sweep has sweep\.{key}="):
        cells_of(sweep(), common=[word])


@pytest.mark.parametrize(("key", "value"), [("budgets", 0.1), ("methods", "hash"), ("seeds", 1)])
def test_a_single_value_is_no_list(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"sweep\.{key} is a list"):
        cells_of({**sweep(), key: value})
