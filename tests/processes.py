"""Several processes that work together, on this machine, by gloo."""

import multiprocessing
import pickle
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# A server that has imported everything once; each process is a fork of it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["recemb.cli.train", "recemb.train.sharded_run", "torch.distributed.tensor"]
)
_SECONDS = 300


def run_rank(rank: int, size: int, folder: str, action: Any, arguments: Any, out: Any) -> None:
    """Run an action as one of several ranks; report what it returned, or what it raised."""
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            rank=rank,
            world_size=size,
            init_method=f"file://{folder}/rendezvous",
            timeout=timedelta(seconds=_SECONDS / 2),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            found = action(*arguments)
        dist.destroy_process_group()
        out.put((rank, pickle.dumps(found), None))
    except BaseException:
        # Whatever ends a process is the test's to show.
        out.put((rank, None, traceback.format_exc()))


def on_ranks(size: int, action: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what an action returns on each of several ranks; raise what any of them raised.

    Args:
        size: number of ranks.
        action: a function of a module.
        arguments: its arguments.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = PROCESSES.Queue()
        ranks = [
            PROCESSES.Process(
                target=run_rank, args=(rank, size, str(Path(folder)), action, arguments, out)
            )
            for rank in range(size)
        ]
        for process in ranks:
            process.start()
        try:
            results = sorted((out.get(timeout=_SECONDS) for _ in ranks), key=lambda r: r[0])
        finally:
            for process in ranks:
                process.join(timeout=10)
                process.kill()
    failures = [error for _, _, error in results if error]
    assert not failures, "\n".join(failures)
    return [pickle.loads(found) for _, found, _ in results]
