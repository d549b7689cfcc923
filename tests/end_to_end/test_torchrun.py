"""`torchrun -m recemb train`, as a user launches it, one of whose processes is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.runs import assert_equal, free_port, outcome
from tests.end_to_end.test_lost_ranks import WORDS

SECONDS = 900
LONG = "trainer.max_epochs=4"


ALONE = ("--standalone", "--nproc-per-node=2")


class Torchrun:
    """A torchrun: of two processes, unless its flags say otherwise."""

    def __init__(
        self, folder: Path, cache: Path, *flags: str, shape: Sequence[str] = ALONE
    ) -> None:
        self.folder = folder
        self.printed = folder.with_suffix(f".{time.monotonic_ns()}.txt")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", *shape),
            *(*flags, "-m", "recemb", "train", *WORDS, LONG),
            *(f"paths.run={folder}", f"paths.cache={cache}"),
        ]
        with self.printed.open("w") as file:
            self.agent = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def kill_rank(self, rank: int, *, after: str) -> None:
        """Kill a process when a checkpoint is there."""
        deadline = time.monotonic() + SECONDS
        while not (self.folder / "checkpoints/train" / after).exists():
            assert time.monotonic() < deadline
            assert self.agent.poll() is None, self.said
            time.sleep(0.01)
        os.kill(self._process(rank), signal.SIGKILL)

    def wait(self) -> int:
        try:
            return self.agent.wait(timeout=SECONDS)
        finally:
            self.agent.kill()

    @property
    def said(self) -> str:
        return self.printed.read_text()

    def _process(self, rank: int) -> int:
        children = Path(f"/proc/{self.agent.pid}/task/{self.agent.pid}/children").read_text()
        told = f"\0RANK={rank}\0".encode()
        (found,) = (p for p in children.split() if told in Path(f"/proc/{p}/environ").read_bytes())
        return int(found)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, Any]:
    job = Torchrun(tmp_path_factory.mktemp("undisturbed") / "run", cache)
    assert job.wait() == 0, job.said
    return outcome(job.folder)


@pytest.mark.slow
def test_the_same_command_goes_on_after_a_kill(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any]
) -> None:
    job = Torchrun(tmp_path / "run", cache)
    job.kill_rank(1, after="step-0000000003")
    assert job.wait() != 0
    assert re.search(r"recemb train: rank 1 \(process \d+ on .*\) gives no sign of life", job.said)
    job = Torchrun(tmp_path / "run", cache)
    assert job.wait() == 0, job.said
    assert "resuming after update" in job.said
    assert_equal(undisturbed, outcome(tmp_path / "run"), "run")


@pytest.mark.slow
def test_torchrun_s_own_restart_goes_on_after_a_kill(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any]
) -> None:
    job = Torchrun(tmp_path / "run", cache, "--max-restarts=1")
    job.kill_rank(0, after="step-0000000003")
    assert job.wait() == 0, job.said
    assert "resuming after update" in job.said
    assert_equal(undisturbed, outcome(tmp_path / "run"), "run")


@pytest.mark.slow
def test_agents_of_two_machines_go_on_after_a_kill(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any]
) -> None:
    """The agent whose process was killed counts a restart, the other none."""
    place = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    shape = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", place, "--max-restarts=3")
    folder = tmp_path / "run"
    jobs = [Torchrun(folder, cache, shape=shape)]
    # The first agent is the one that answers at the port.
    time.sleep(3)
    jobs.append(Torchrun(folder, cache, shape=shape))
    jobs[1].kill_rank(1, after="step-0000000003")
    assert [job.wait() for job in jobs] == [0, 0], jobs[1].said
    assert any("resuming after update" in job.said for job in jobs)
    assert_equal(undisturbed, outcome(folder), "run")
