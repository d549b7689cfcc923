"""A process killed at any system call of a save leaves the old checkpoint or the new one."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch

from recemb.checkpoint.store import CheckpointName, CheckpointStore

_SAVE_CALLS = {
    "open",
    "mkdir",
    "rename",
    "fsync",
    "write",
    "write_text",
    "write_bytes",
    "rmtree",
    "rmdir",
}


def save(store: CheckpointStore, step: int) -> None:
    store.save(CheckpointName("step", step), {"weight": torch.full((1000,), float(step))})


def run_until_call(count: int, action: Callable[[], None]) -> bool:
    """Fork, kill the child at its `count`-th file-system call; tell if it was killed."""
    child = os.fork()
    if child == 0:
        seen = 0

        def trace(frame: FrameType, event: str, argument: object) -> None:
            nonlocal seen
            name = getattr(argument, "__name__", "") if event == "c_call" else ""
            if name in _SAVE_CALLS:
                seen += 1
                if seen == count:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(trace)
        action()
        sys.setprofile(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("replaces", [False, True])
def test_every_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path, replaces: bool) -> None:
    killed = 0
    for count in range(1, 100):
        store = CheckpointStore(tmp_path / str(count))
        save(store, 1)
        save(store, 2) if replaces else None
        if not run_until_call(count, lambda store=store: save(store, 2)):
            break
        killed += 1
        found = store.load_newest("step")
        assert found is not None
        assert found[1]["weight"].tolist() == [float(found[0].step)] * 1000
        # What is replaced is there until what replaces it is.
        assert found[0].step == 2 or not replaces
        save(store, 2)
        assert [p.name for p in sorted(store.folder.iterdir())] == [
            "step-0000000001",
            "step-0000000002",
        ]
    assert killed >= 8
