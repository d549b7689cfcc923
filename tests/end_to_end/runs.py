"""Processes that run `recemb train` in tests, what they print, and what they leave."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from recemb.checkpoint.store import CheckpointStore
from recemb.cli.train import run


def train_printing(arguments: list[str], printed: Path) -> None:
    """Train in this process, which is the test's own, print into a file, and end the process."""
    with printed.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.exit(run(arguments))


def as_rank(rank: int, world_size: int, port: int) -> None:
    """Make this process one of several, as torchrun would have it."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def outcome(folder: Path) -> dict[str, Any]:
    """Return all that a run leaves, but for times."""
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
    """Check that two nested values are the same to the last bit."""
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
