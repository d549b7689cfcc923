"""Processes that SLURM or submitit start, without torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from tests.end_to_end.runs import free_port

WORDS = (
    "data=synthetic",
    "data.num_train=604",
    "data.scale=0.0001",
    "data.num_val=200",
    "data.num_test=100",
    "model=lr",
    "trainer.batch_size=301",
    "trainer.max_epochs=1",
    "trainer.num_threads=1",
    "sharding=row_wise",
    "world_size=2",
    "timeout_seconds=120",
    "logger=none",
    "progress=false",
)


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what a launcher may have left in it."""
    names = ("RANK", "WORLD_SIZE", "MASTER_", "SLURM_", "SUBMITIT_")
    return {k: v for k, v in os.environ.items() if not k.startswith(names)} | more


def as_task(rank: int, port: int) -> dict[str, str]:
    """Return the environment that srun gives to a task of two on one machine."""
    return environment(
        SLURM_JOB_ID="77",
        SLURM_STEP_ID="0",
        SLURM_STEP_NUM_TASKS="2",
        SLURM_STEP_NODELIST="127.0.0.1",
        SLURM_PROCID=str(rank),
        SLURM_LOCALID=str(rank),
        MASTER_PORT=str(port),
    )


def test_the_launcher_for_slurm_composes_and_ends_all_tasks_when_one_fails() -> None:
    with initialize_config_module("recemb.conf", version_base="1.3"):
        config = compose(
            "train",
            overrides=["hydra/launcher=slurm", "hydra.launcher.tasks_per_node=4"],
            return_hydra_config=True,
        )
    launcher = config.hydra.launcher
    assert launcher._target_.endswith("submitit_launcher.SlurmLauncher")
    assert launcher.tasks_per_node == 4
    assert launcher.setup == ["export SLURM_KILL_BAD_EXIT=1"]


@pytest.mark.slow
def test_two_tasks_of_srun_train_together(tmp_path: Path) -> None:
    port = free_port()
    places = (f"paths.run={tmp_path / 'run'}", f"paths.cache={tmp_path / 'cache'}")
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "recemb", "train", *WORDS, *places], env=as_task(rank, port)
        )
        for rank in range(2)
    ]
    try:
        assert [task.wait(timeout=900) for task in tasks] == [0, 0]
    finally:
        for task in tasks:
            task.kill()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["rank_peak_memory_bytes"]) == 2


@pytest.mark.slow
def test_a_run_of_a_multirun_of_submitit_is_trained_by_its_tasks(tmp_path: Path) -> None:
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "recemb", "train", "-m", "seed=3", *WORDS),
            "hydra/launcher=submitit_local",
            "hydra.launcher.tasks_per_node=2",
            f"hydra.sweep.dir={tmp_path / 'runs'}",
            f"paths.cache={tmp_path / 'cache'}",
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert launched.returncode == 0, launched.stderr
    summary = json.loads((tmp_path / "runs" / "0" / "summary.json").read_text())
    assert summary["seed"] == 3
    assert len(summary["rank_peak_memory_bytes"]) == 2
