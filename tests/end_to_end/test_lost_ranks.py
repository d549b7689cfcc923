"""Ranks of `recemb train` that hang, die or fail: what the others say, and how the run goes on."""

import os
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recemb.checkpoint.store import CheckpointStore
from recemb.data.batch import Batch
from recemb.train.fit import Fit
from recemb.train.progress import StopSignals
from tests.end_to_end.runs import as_rank, assert_equal, free_port, outcome, train_printing
from tests.end_to_end.test_sharded_training import FLAT, RUN
from tests.processes import PROCESSES

WORDS = (
    *RUN,
    *FLAT,
    "data.num_train=1204",
    "model.dropout=0.1",
    "trainer.checkpoint_every_steps=1",
    "sharding=row_wise",
    "timeout_seconds=5",
)
SECONDS = 300
Fault = Callable[[Fit], None]


class Job:
    """Processes that train together, one of which may be disturbed.

    Args:
        folder: of the run.
        fault: what happens to the last rank before update `step`.
    """

    def __init__(
        self, folder: Path, cache: Path, *more: str, fault: Fault | None = None, step: int = 5
    ) -> None:
        self.folder = folder
        port = free_port()
        arguments = [*WORDS, *more, f"paths.run={folder}", f"paths.cache={cache}"]
        stamp = time.monotonic_ns()
        self.printed = [folder.with_suffix(f".{stamp}.{rank}.txt") for rank in range(2)]
        self.ranks = [
            PROCESSES.Process(
                target=train_rank,
                args=(rank, port, arguments, self.printed[rank], fault if rank else None, step),
            )
            for rank in range(2)
        ]
        for process in self.ranks:
            process.start()

    def wait(self) -> list[int | None]:
        """Return the exit codes; a rank that is left alone and hangs is killed."""
        self.ranks[0].join(timeout=SECONDS)
        self.ranks[1].join(timeout=20 if self.ranks[0].exitcode else SECONDS)
        codes = [process.exitcode for process in self.ranks]
        for process in self.ranks:
            process.kill()
            process.join()
        return codes

    def said(self, rank: int) -> str:
        return self.printed[rank].read_text()


def train_rank(
    rank: int, port: int, arguments: list[str], printed: Path, fault: Fault | None, step: int
) -> None:
    if fault is not None:
        disturb(fault, step)
    as_rank(rank, 2, port)
    train_printing(arguments, printed)


def disturb(fault: Fault, step: int) -> None:
    """Let a fault happen in this process before an update."""
    update = Fit._update

    def disturbed(fit: Fit, group: list[Batch], signals: StopSignals) -> None:
        if fit.step + 1 == step:
            fault(fit)
        update(fit, group, signals)

    Fit._update = disturbed


def hang(fit: Fit) -> None:
    time.sleep(10 * SECONDS)


def stand_still(fit: Fit) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def die(fit: Fit) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(fit: Fit) -> None:
    raise ValueError("this machine has no such file")


def fill_the_disk(fit: Fit) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))


def poison(fit: Fit) -> None:
    """Give this rank's rows of C3 finite values of which the network makes others."""
    for chunk in fit.plan.tables.state_dict()["embedding_bags.C3.weight"].chunks:
        chunk.values.fill_(3e38)


def newest_step(folder: Path) -> int:
    return CheckpointStore(folder / "checkpoints/train").names("step")[-1].step


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, Any]:
    return finish(tmp_path_factory.mktemp("undisturbed") / "run", cache)


def finish(folder: Path, cache: Path, *more: str) -> dict[str, Any]:
    """Train to the end and return what the run leaves."""
    job = Job(folder, cache, *more)
    assert job.wait() == [0, 0], job.said(0) + job.said(1)
    return outcome(folder)


def test_a_rank_that_hangs_is_named_and_the_run_goes_on(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any]
) -> None:
    job = Job(tmp_path / "run", cache, fault=hang)
    assert job.wait()[0] == 2, job.said(0)
    assert re.search(
        r"recemb train: rank 1 \(process \d+ on .*\) lives, but did not answer within 5 seconds "
        r"\(timeout_seconds\)\. Last heard of: ranks? .*after update 4",
        job.said(0),
    ), job.said(0)
    assert_equal(undisturbed, finish(tmp_path / "run", cache), "run")


def test_a_rank_that_is_killed_is_named_and_the_run_ends_as_if_undisturbed(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any]
) -> None:
    job = Job(tmp_path / "run", cache, fault=die)
    assert job.wait() == [2, -signal.SIGKILL], job.said(0)
    assert re.search(
        r"recemb train: rank 1 \(process \d+ on .*\) gives no sign of life\. Last heard of: .*"
        r"after update 4",
        job.said(0),
    ), job.said(0)
    assert newest_step(tmp_path / "run") == 4
    assert_equal(undisturbed, finish(tmp_path / "run", cache), "run")


def test_a_loss_that_is_not_finite_ends_all_ranks_with_update_feature_and_checkpoint(
    tmp_path: Path, cache: Path
) -> None:
    job = Job(tmp_path / "run", cache, fault=poison)
    assert job.wait() == [2, 2], job.said(0)
    for rank in range(2):
        assert re.search(
            r"the training loss is (nan|inf) at update 5, which was not made; feature .* has the "
            r"largest gradient.*; the last good checkpoint, .*step-0000000004, is kept",
            job.said(rank),
        ), job.said(rank)
    # Deep and first-order vectors of a feature go by its table too: C3@C3.
    assert "feature 'C3@C3' (gradient not finite" in job.said(0)
    assert newest_step(tmp_path / "run") == 4


def test_a_full_disk_of_one_rank_ends_all_and_a_damaged_shard_means_the_checkpoint_before(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any]
) -> None:
    job = Job(tmp_path / "run", cache, fault=fill_the_disk)
    assert job.wait() == [2, 2], job.said(0)
    for rank in range(2):
        assert re.search(
            r"step-0000000005 could not be written \(process 1: .* free some space", job.said(rank)
        ), job.said(rank)
    assert newest_step(tmp_path / "run") == 4
    shard = tmp_path / "run/checkpoints/train/step-0000000004/tensors-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    job = Job(tmp_path / "run", cache)
    assert job.wait() == [0, 0], job.said(0)
    assert "passing over a damaged checkpoint" in job.said(0)
    assert "resuming after update 3" in job.said(0)
    assert_equal(undisturbed, outcome(tmp_path / "run"), "run")
