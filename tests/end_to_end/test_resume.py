"""A run that is killed and started again ends bit-identical to one that was not."""

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.runs import assert_equal, outcome, train_printing
from tests.processes import PROCESSES

# Dropout and batch norm, several epochs, evaluations inside an epoch, a last short batch, gradient
# accumulation, a schedule: everything that has a state.
RUN = [
    "optimizer=adam",
    "trainer.batch_size=256",
    "trainer.accumulate_batches=2",
    "trainer.max_epochs=3",
    "trainer.eval_every_steps=4",
    "trainer.checkpoint_every_steps=1",
    "trainer.patience=100",
    "trainer.log_every_steps=2",
    "trainer.schedule.warmup_steps=4",
    "trainer.lr_plateau_factor=0.5",
    "trainer.num_threads=1",
    "logger=none",
    "progress=false",
]
FLAT = [
    "data=synthetic",
    "data.num_train=3100",
    "data.scale=0.0001",
    "data.num_val=1000",
    "data.num_test=1000",
    "model=deepfm",
    "model.hidden_units=[32,16]",
    "model.dropout=0.1",
]
HISTORIES = [
    "data=synthetic_sequences",
    "data.num_users=130",
    "data.length=60",
    "data.max_history=20",
    "model=dare",
    "model.hidden_units=[16]",
    "model.attention_dim=4",
    "embedding_dim=8",
]


class Run:
    """A process that trains; `output` is what it printed."""

    def __init__(self, folder: Path, cache: Path, *more: str, what: Sequence[str] = FLAT) -> None:
        self.folder = folder
        self.printed = folder.with_suffix(f".{time.monotonic_ns()}.txt")
        arguments = [*RUN, *what, *more, f"paths.run={folder}", f"paths.cache={cache}"]
        self.process = PROCESSES.Process(target=train_printing, args=(arguments, self.printed))
        self.process.start()

    def wait(self) -> int:
        self.process.join(timeout=300)
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.printed.read_text()

    def wait_for_checkpoint(self) -> None:
        deadline = time.monotonic() + 120
        while self.process.is_alive() and not (self.folder / "checkpoints").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def finish(folder: Path, cache: Path, *more: str, what: Sequence[str] = FLAT) -> str:
    process = Run(folder, cache, *more, what=what)
    assert process.wait() == 0, process.output
    return process.output


def kill_after(process: Run, seconds: float) -> None:
    """Kill the process `seconds` after its first checkpoint began to be written."""
    process.wait_for_checkpoint()
    time.sleep(seconds)
    process.process.kill()
    process.wait()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(folder, cache)
    return outcome(folder)


def resume_after_kills(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any], moments: list[float], *more: str
) -> None:
    for seconds in moments:
        kill_after(Run(tmp_path / "run", cache, *more), seconds)
    finish(tmp_path / "run", cache, *more)
    assert_equal(undisturbed, outcome(tmp_path / "run"), "run")


def test_a_run_killed_twice_ends_as_if_undisturbed(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any]
) -> None:
    resume_after_kills(tmp_path, cache, undisturbed, [0.05, 0.3])


def test_a_run_that_saves_in_the_background_and_is_killed_ends_as_if_undisturbed(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any]
) -> None:
    more = "trainer.async_checkpoint=true"
    resume_after_kills(tmp_path, cache, undisturbed, [0.1, 0.2], more)


def test_a_loss_that_blows_up_ends_a_run_with_the_feature_and_the_way_out(
    tmp_path: Path, cache: Path
) -> None:
    more = ("optimizer.tables.learning_rate=1e38", "optimizer.dense.lr=1e38")
    process = Run(tmp_path / "run", cache, *more)
    assert process.wait() == 2, process.output
    said = process.output.splitlines()[-1]
    assert said.startswith("recemb train: ")
    assert "finite" in said or "has the largest gradient" in said
    assert "trainer.max_gradient_norm=1" in said


def test_a_run_over_histories_that_is_killed_ends_as_if_undisturbed(
    tmp_path: Path, cache: Path
) -> None:
    finish(tmp_path / "undisturbed", cache, what=HISTORIES)
    kill_after(Run(tmp_path / "run", cache, what=HISTORIES), 0.1)
    finish(tmp_path / "run", cache, what=HISTORIES)
    assert_equal(outcome(tmp_path / "undisturbed"), outcome(tmp_path / "run"), "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_run_killed_at_a_random_moment_ends_as_if_undisturbed(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any], seed: int
) -> None:
    moment = random.Random(seed).uniform(0.0, 1.5)
    resume_after_kills(tmp_path, cache, undisturbed, [moment])


def test_an_interrupted_run_saves_says_how_to_go_on_and_goes_on(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any]
) -> None:
    process = Run(tmp_path / "run", cache)
    process.wait_for_checkpoint()
    assert process.process.pid is not None
    os.kill(process.process.pid, signal.SIGINT)
    assert process.wait() == 130, process.output
    assert "To go on: recemb train" in process.output
    assert f"paths.run={tmp_path / 'run'}" in process.output
    finish(tmp_path / "run", cache)
    assert_equal(undisturbed, outcome(tmp_path / "run"), "run")


def test_a_finished_run_returns_at_once(tmp_path: Path, cache: Path) -> None:
    more = ["trainer.max_steps=3"]
    finish(tmp_path / "run", cache, *more)
    before = (tmp_path / "run" / "summary.json").read_bytes()
    assert "has finished before" in finish(tmp_path / "run", cache, *more)
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path, cache: Path) -> None:
    finish(tmp_path / "run", cache, "trainer.max_steps=3")
    process = Run(tmp_path / "run", cache, "trainer.max_steps=4")
    assert process.wait() == 2
    assert "trainer.max_steps was 3 and is 4" in process.output
