"""Ranks of `recemb train` that hang, die or fail: what the others say, and how the run goes on."""

import os
import random
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
from tests.processes import PROCESSES

WORDS = (
    "data=synthetic",
    # The last batch of an epoch has one example: the first of two ranks has none of it.
    "data.num_train=1205",
    "data.scale=0.0001",
    "data.num_val=501",
    "data.num_test=303",
    "model=dnn",
    "model.hidden_units=[32,16]",
    "model.dropout=0.1",
    "optimizer=adam",
    "sharding=row_wise",
    "timeout_seconds=120",
    "trainer.batch_size=301",
    # Five updates.
    "trainer.max_epochs=1",
    "trainer.eval_every_steps=2",
    "trainer.checkpoint_every_steps=1",
    "trainer.patience=100",
    "trainer.log_every_steps=2",
    "trainer.num_threads=1",
    "logger=none",
    "progress=false",
)
SECONDS = 900
# Long enough for ranks to start and to come to one point on a busy machine.
SOON = "timeout_seconds=20"
Fault = Callable[[Fit], None]


class Job:
    """Processes that train together, one of which may be disturbed.

    Args:
        folder: of the run.
        fault: what happens to the rank `victim` before update `step`.
    """

    def __init__(
        self,
        folder: Path,
        cache: Path,
        *more: str,
        fault: Fault | None = None,
        victim: int = 1,
        step: int = 3,
    ) -> None:
        self.folder = folder
        self.survivor = 1 - victim
        port = free_port()
        arguments = [*WORDS, *more, f"paths.run={folder}", f"paths.cache={cache}"]
        stamp = time.monotonic_ns()
        self.printed = [folder.with_suffix(f".{stamp}.{rank}.txt") for rank in range(2)]
        faults = [fault if rank == victim else None for rank in range(2)]
        self.ranks = [
            PROCESSES.Process(
                target=train_rank,
                args=(rank, port, arguments, self.printed[rank], faults[rank], step),
            )
            for rank in range(2)
        ]
        for process in self.ranks:
            process.start()

    def wait(self, grace: float = 20) -> list[int | None]:
        """Return the exit codes; one who hangs for `grace` seconds after the other is killed."""
        last = self.ranks[self.survivor]
        last.join(timeout=SECONDS)
        other = self.ranks[1 - self.survivor]
        other.join(timeout=grace if last.exitcode else SECONDS)
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
    """Make this rank's rows of C3 NaN."""
    # Not by its state, which is a matter of all ranks: Adam's steps are counted together.
    held = dict(fit.plan.tables._chunks())
    for chunk in held["embedding_bags.C3.weight"].chunks:
        chunk.values.fill_(float("nan"))


def newest_step(folder: Path) -> int:
    """Return the update after which the newest checkpoint was saved; 0 if there is none."""
    names = CheckpointStore(folder / "checkpoints/train").names("step")
    return names[-1].step if names else 0


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


def test_a_rank_that_hangs_is_named(tmp_path: Path, cache: Path) -> None:
    job = Job(tmp_path / "run", cache, SOON, fault=hang)
    assert job.wait(grace=0)[0] == 2, job.said(0)
    assert re.search(
        r"recemb train: rank 1 \(process \d+ on .*\) lives, but did not answer within 20 seconds "
        r"\(timeout_seconds\)\. Last heard of: ranks? .*after update 2",
        job.said(0),
    ), job.said(0)
    assert newest_step(tmp_path / "run") == 2


def test_a_rank_that_is_killed_is_named_and_the_run_ends_as_if_undisturbed(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any]
) -> None:
    job = Job(tmp_path / "run", cache, fault=die)
    assert job.wait() == [2, -signal.SIGKILL], job.said(0)
    assert re.search(
        r"recemb train: rank 1 \(process \d+ on .*\) gives no sign of life\. Last heard of: .*"
        r"after update 2",
        job.said(0),
    ), job.said(0)
    assert newest_step(tmp_path / "run") == 2
    assert_equal(undisturbed, finish(tmp_path / "run", cache), "run")


def test_a_loss_that_is_not_finite_ends_all_ranks_with_update_feature_and_checkpoint(
    tmp_path: Path, cache: Path
) -> None:
    job = Job(tmp_path / "run", cache, fault=poison)
    assert job.wait() == [2, 2], job.said(0)
    for rank in range(2):
        assert re.search(
            r"the training loss is (nan|inf) at update 3, which was not made; feature .* has the "
            r"largest gradient.*; the last good checkpoint, .*step-0000000002, is kept",
            job.said(rank),
        ), job.said(rank)
    assert "feature 'C3' (gradient not finite" in job.said(0)
    assert newest_step(tmp_path / "run") == 2


def test_a_full_disk_of_one_rank_ends_all_and_a_damaged_shard_means_the_checkpoint_before(
    tmp_path: Path, cache: Path, undisturbed: dict[str, Any]
) -> None:
    job = Job(tmp_path / "run", cache, fault=fill_the_disk)
    assert job.wait() == [2, 2], job.said(0)
    for rank in range(2):
        assert re.search(
            r"step-0000000003 could not be written \(process 1: .* free some space", job.said(rank)
        ), job.said(rank)
    assert newest_step(tmp_path / "run") == 2
    shard = tmp_path / "run/checkpoints/train/step-0000000002/tensors-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    job = Job(tmp_path / "run", cache)
    assert job.wait() == [0, 0], job.said(0)
    assert "passing over a damaged checkpoint" in job.said(0)
    assert "resuming after update 1" in job.said(0)
    assert_equal(undisturbed, outcome(tmp_path / "run"), "run")


@pytest.mark.slow
def test_a_rank_that_fails_is_named_with_its_error(tmp_path: Path, cache: Path) -> None:
    job = Job(tmp_path / "run", cache, fault=fail)
    assert job.wait() == [2, 2], job.said(0)
    own = "this machine has no such file"
    assert f"recemb train: {own} (traceback" in job.said(1)
    assert re.search(rf"rank 1 \(process .*\) stopped: ValueError: {own}\. Last", job.said(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "message"),
    [(1, "rank 1 (process "), (0, "the store through which the ranks speak of each other")],
)
def test_a_rank_that_stands_still_is_not_waited_for(
    tmp_path: Path, cache: Path, victim: int, message: str
) -> None:
    job = Job(tmp_path / "run", cache, SOON, fault=stand_still, victim=victim)
    survivor = 1 - victim
    assert job.wait()[survivor] == 2, job.said(survivor)
    assert message in job.said(survivor)


def kill_at(job: Job, rank: int, step: int, moment: str) -> None:
    """Kill a rank once `step` is saved: while the next checkpoint is written, or at any time."""
    deadline = time.monotonic() + SECONDS
    while newest_step(job.folder) < step:
        assert time.monotonic() < deadline, job.said(0) + job.said(1)
        time.sleep(0.005)
    begun = job.folder / "checkpoints/train"
    while moment == "write" and not list(begun.glob(".unfinished-step-*")):
        assert time.monotonic() < deadline
    job.ranks[rank].kill()
    job.wait()


@pytest.mark.slow
def test_a_run_of_which_ten_times_a_rank_is_killed_ends_as_if_undisturbed(
    tmp_path: Path, cache: Path
) -> None:
    rng = random.Random(6)
    epochs = "trainer.max_epochs=16"
    undisturbed = finish(tmp_path / "undisturbed", cache, epochs)
    folder, step = tmp_path / "run", 0
    for kill in range(10):
        job = Job(folder, cache, epochs)
        rank, moment = rng.randrange(2), rng.choice(["write", "any"])
        kill_at(job, rank, step + rng.randint(1, 2), moment)
        survivor = job.said(1 - rank)
        assert "recemb train: " in survivor, survivor
        assert kill == 0 or f"resuming after update {step}" in job.said(0)
        step = newest_step(folder)
    assert_equal(undisturbed, finish(folder, cache, epochs), "run")
