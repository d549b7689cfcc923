"""`recemb sweep`: what is run, what is skipped, what goes on after a failure and after a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recemb.cli import main as command
from recemb.cli.cell import ComposedCell
from recemb.cli.sweep import OUTPUT, Sweep
from recemb.cli.train import train

SMALL = [
    *("data.num_train=512", "data.num_val=64", "data.num_test=64", "data.scale=0.0001"),
    *("model=dnn", "embedding_dim=4", "trainer.max_steps=2", "trainer.num_threads=1"),
]
TWO = ["sweep.methods=[hash,unified]", "sweep.budgets=[0.5]"]


class Trainings:
    """Trains cells in this process, and counts them; some fail."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.failing: set[str] = set()

    def __call__(self, sweep: Sweep, composed: ComposedCell, lock: int) -> int:
        self.labels.append(composed.cell.label)
        folder = composed.folder(sweep.out)
        folder.mkdir(parents=True, exist_ok=True)
        if composed.cell.label in self.failing:
            (folder / OUTPUT).write_text("some lines\nrecemb train: it broke\n\n")
            return -signal.SIGKILL
        OmegaConf.update(composed.config, "paths.run", str(folder))
        composed.config.progress = False
        train(composed.config)
        return 0


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    made = Trainings()
    monkeypatch.setattr(Sweep, "_train", lambda *arguments: made(*arguments))
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def sweep(out: Path, cache: Path, *words: str) -> int:
    try:
        return command.main(["sweep", *SMALL, f"out={out}", f"paths.cache={cache}", *words])
    except SystemExit as ended:
        return int(str(ended.code))


def rows_in(out: Path) -> list[dict[str, str]]:
    with (out / "rows.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_has_what_the_run_s_summary_has(
    tmp_path: Path, cache: Path, trainings: Trainings
) -> None:
    assert sweep(tmp_path, cache, *TWO) == 0
    for row in rows_in(tmp_path):
        summary = json.loads((tmp_path / row["run"] / "summary.json").read_text())
        assert row["status"] == "ok"
        assert row["config_hash"] == summary["config_hash"]
        assert float(row["test/auc"]) == summary["metrics"]["test/auc"]
        assert int(row["serve_bytes"]) == summary["bytes"]["serve"]
        assert float(row["ratio"]) <= 0.5
        assert (row["data"], row["model"]) == ("synthetic", "dnn")


def test_what_is_done_is_not_done_again(tmp_path: Path, cache: Path, trainings: Trainings) -> None:
    assert sweep(tmp_path, cache, *TWO) == 0
    before = rows_in(tmp_path)
    (tmp_path / "rows.csv").unlink()
    assert sweep(tmp_path, cache, *TWO, "sweep.seeds=[1,2]") == 0
    assert trainings.labels == ["hash", "unified", "hash", "unified"]
    after = rows_in(tmp_path)
    assert [row["seed"] for row in after] == ["1", "2", "1", "2"]
    assert [row for row in after if row["seed"] == "1"] == before


def test_an_infeasible_cell_says_its_floor_and_is_no_failure(
    tmp_path: Path, cache: Path, trainings: Trainings
) -> None:
    assert sweep(tmp_path, cache, "sweep.methods=[full,hash]", "sweep.budgets=[0.5]") == 0
    full, hashed = rows_in(tmp_path)
    assert (full["status"], full["floor_ratio"], full["test/auc"]) == ("infeasible", "1.0", "")
    assert full["floor_bytes"] == full["full_bytes"]
    assert hashed["status"] == "ok"
    assert trainings.labels == ["hash"]


def test_a_failure_is_a_row_and_the_others_go_on(
    tmp_path: Path, cache: Path, trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings.failing = {"hash"}
    assert sweep(tmp_path, cache, *TWO) == 1
    hashed, unified = rows_in(tmp_path)
    assert hashed["status"] == "failed"
    assert hashed["error"].startswith("recemb train: it broke (ended with signal SIGKILL")
    assert unified["status"] == "ok"
    assert "1 of them failed" in capsys.readouterr().out
    trainings.failing = set()
    assert sweep(tmp_path, cache, *TWO) == 0
    assert trainings.labels == ["hash", "unified", "hash"]
    assert [row["status"] for row in rows_in(tmp_path)] == ["ok", "ok"]


def test_a_method_s_wrong_override_is_its_own_failure(
    tmp_path: Path, cache: Path, trainings: Trainings
) -> None:
    methods = (
        'sweep.methods=[{embedding: hash, overrides: ["embedding.hashing=odd"]}, hash_embeddings]'
    )
    assert sweep(tmp_path, cache, methods, "sweep.budgets=[0.5]") == 1
    first, second = rows_in(tmp_path)
    assert first["status"] == "failed"
    assert "hashing" in first["error"]
    assert second["status"] == "ok"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sweep=quik", "did you mean sweep=quick?"),
        ("trainer.max_stepps=1", "did you mean trainer.max_steps?"),
        ("sweep.methods=[hsh]", "there is no method 'hsh'"),
    ],
)
def test_a_misspelt_word_is_explained_before_any_work(
    tmp_path: Path, cache: Path, word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path / "out", cache, word) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def begin(out: Path, cache: Path) -> "subprocess.Popen[str]":
    words = [*SMALL, *TWO, "trainer.max_steps=40", "trainer.checkpoint_every_steps=1"]
    words += ["trainer.batch_size=16", "trainer.max_epochs=2", f"out={out}", f"paths.cache={cache}"]
    return subprocess.Popen(
        [sys.executable, "-m", "recemb", "sweep", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_sweep_goes_on_with_the_same_command(
    tmp_path: Path, cache: Path, number: signal.Signals
) -> None:
    killed = begin(tmp_path, cache)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/checkpoints/train/step-*")):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(number)
    killed.communicate(timeout=120)
    assert killed.returncode == (-number if number == signal.SIGKILL else 130)
    again = begin(tmp_path, cache)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0, printed
    assert [row["status"] for row in rows_in(tmp_path)] == ["ok", "ok"]
    assert [row["steps"] for row in rows_in(tmp_path)] == ["40", "40"]
    assert len(list(tmp_path.glob("runs/*"))) == 2
