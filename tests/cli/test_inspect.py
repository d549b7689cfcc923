"""`recemb inspect`: pages on finished runs, with their charts."""

import csv
from pathlib import Path
from xml.etree import ElementTree

import pytest

from recemb.cli import main as command

COMMON = [
    *("logger=none", "progress=false", "trainer.max_steps=3", "trainer.num_threads=1"),
    *("trainer.batch_size=64", "embedding_dim=4", "model.hidden_units=[8]"),
]
SEQUENCES = [
    *("data=synthetic_sequences", "data.num_users=60", "data.length=40", "data.num_items=120"),
    *("data.num_categories=6", "data.max_history=12", "optimizer=adam", "model.init_std=null"),
]
RUNS = {
    "flat": [
        *("data=synthetic", "data.num_train=512", "data.num_val=64", "data.num_test=64"),
        *("data.scale=0.0001", "model=dnn", "embedding=hash", "budget=0.5"),
    ],
    "dare": [*SEQUENCES, "model=dare", "model.attention_dim=2"],
    "twin": [*SEQUENCES, "model=twin"],
    "bst": [*(word for word in SEQUENCES if "init_std" not in word), "model=bst"],
}


def recemb(*words: str) -> int:
    """Run the command; return its status, however it ends."""
    try:
        return command.main(list(words))
    except SystemExit as ended:
        return int(str(ended.code))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the runs by name."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in RUNS.items():
        paths = [f"paths.run={folder / name}", f"paths.cache={folder / 'cache'}"]
        assert recemb("train", *words, *COMMON, *paths) == 0
    return folder


def inspected(run: Path, *words: str) -> tuple[str, set[str]]:
    """Return the page, and the charts, whose text is checked."""
    assert recemb("inspect", str(run), *words) == 0
    charts = set((run / "inspect").glob("*.svg"))
    for chart in charts:
        ElementTree.parse(chart)
    return (run / "inspect/inspect.md").read_text(), {chart.name for chart in charts}


def test_a_run_has_a_page_of_its_tables(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, charts = inspected(runs / "flat")
    assert charts == {"spectrum.svg", "frequency.svg"}
    assert all(f"({name})" in page for name in charts)
    for heading in ("## Vectors", "## By how often ids occur in training", "## Rows"):
        assert heading in page
    printed = capsys.readouterr().out
    assert "## Vectors" in printed
    assert "![" not in printed
    rows = list(csv.DictReader((runs / "flat/inspect/vectors.csv").read_text().splitlines()))
    assert len(rows) == 26
    assert all(1 <= float(row["rank"]) <= 4.01 for row in rows)


def test_a_model_of_sequences_has_its_analyses(runs: Path) -> None:
    words = ["min_rows=20", "min_joint=1", "num_batches=2", "batch_size=64"]
    page, charts = inspected(runs / "twin", *words)
    assert charts >= {"gradients.svg", "discriminability.svg", "attention.svg"}
    assert "| item |" in page
    assert "NDCG of the most recent" in page
    assert "Normalised mutual information" in page


def test_roles_of_two_widths_have_no_cosine(runs: Path) -> None:
    page, _ = inspected(runs / "dare", "num_batches=1", "batch_size=64")
    (row,) = [line for line in page.splitlines() if line.startswith("| position |")]
    assert row.endswith("| - | - |")


def test_too_few_examples_are_said(runs: Path) -> None:
    page, _ = inspected(runs / "twin", "min_rows=100000", "num_batches=1")
    assert "No target category has 100000 training examples" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run is missing; write recemb inspect RUN"),
        (["nowhere"], "nowhere is no run"),
        (["run=x", "max_idss=3"], "max_idss: there is no such key"),
    ],
)
def test_what_is_missing_is_said(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recemb("inspect", *words) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_a_search_says_what_is_not_shown(runs: Path) -> None:
    page, _ = inspected(runs / "bst")
    assert "## Vectors" in page
    assert "which BST does not" in page
