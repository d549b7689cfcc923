"""A run that is killed and started again ends bit-identical to one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from recemb.checkpoint.store import CheckpointStore

# Dropout and batch norm, several epochs, evaluations inside an epoch, a last short batch, gradient
# accumulation, a schedule: everything that has a state.
RUN = [
    "data=synthetic",
    "data.num_train=6100",
    "data.num_val=1000",
    "data.num_test=1000",
    "model=deepfm",
    "model.hidden_units=[32,16]",
    "model.dropout=0.1",
    "optimizer=adam",
    "trainer.batch_size=256",
    "trainer.accumulate_batches=2",
    "trainer.max_epochs=3",
    "trainer.eval_every_steps=5",
    "trainer.checkpoint_every_steps=1",
    "trainer.patience=100",
    "trainer.log_every_steps=2",
    "trainer.schedule.warmup_steps=4",
    "trainer.lr_plateau_factor=0.5",
    "trainer.num_threads=1",
    "logger=none",
    "progress=false",
]


def start(folder: Path, cache: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "recemb", "train", *RUN, *more]
    return subprocess.Popen(
        [*command, f"paths.run={folder}", f"paths.cache={cache}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(folder: Path, cache: Path, *more: str) -> str:
    process = start(folder, cache, *more)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def outcome(folder: Path) -> dict[str, Any]:
    found = CheckpointStore(folder / "checkpoints" / "train").load_newest("step")
    assert found is not None
    state = found[1]
    state["progress"].pop("training_seconds")
    return {
        "step": found[0].step,
        "state": state,
        "log": (folder / "metrics.jsonl").read_bytes(),
        "metrics": json.loads((folder / "summary.json").read_text())["metrics"],
    }


def assert_equal(left: Any, right: Any, where: str) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    else:
        assert left == right, where


def kill_after(process: subprocess.Popen[str], folder: Path, seconds: float) -> None:
    """Kill the process `seconds` after its first checkpoint began to be written."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "checkpoints").exists():
            time.sleep(seconds)
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder, cache)
    return outcome(folder)


def resume_after_kills(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any], moments: list[float]
) -> None:
    for seconds in moments:
        kill_after(start(tmp_path, cache), tmp_path, seconds)
    finish(tmp_path, cache)
    assert_equal(undisturbed, outcome(tmp_path), "run")


def test_a_run_killed_twice_ends_as_if_undisturbed(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any]
) -> None:
    resume_after_kills(tmp_path, cache, undisturbed, [0.05, 0.3])


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
    process = start(tmp_path, cache)
    while process.poll() is None and not (tmp_path / "checkpoints").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "To go on: recemb train" in output
    assert f"paths.run={tmp_path}" in output
    finish(tmp_path, cache)
    assert_equal(undisturbed, outcome(tmp_path), "run")


def test_a_finished_run_returns_at_once(
    tmp_path: Path, cache: Path
) -> None:
    more = ["trainer.max_steps=3"]
    finish(tmp_path, cache, *more)
    before = (tmp_path / "summary.json").read_bytes()
    assert "has finished before" in finish(tmp_path, cache, *more)
    assert (tmp_path / "summary.json").read_bytes() == before


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path, cache: Path) -> None:
    finish(tmp_path, cache, "trainer.max_steps=3")
    process = start(tmp_path, cache, "trainer.max_steps=4")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "trainer.max_steps was 3 and is 4" in output
