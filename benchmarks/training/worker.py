"""One peer in a process of its own, driven by lines of JSON on standard input.

Requests and answers, one line each:

    {"do": "build", ...}       builds the peer            {"versions": ..., "has_bf16": ...}
    {"do": "steps", "n": N}    trains N batches           {"seconds": ..., "peak_bytes": ...}
    {"do": "evaluate"}         scores the held-out rows   {"logloss": ..., "samples": ...}
    {"do": "parts", "n": N}    times parts of N steps     {"seconds": {part: ...}}

Batches are made before the clock starts, for every peer alike, and each peer trains on the same
rows in the same order. Whatever a library prints goes to standard error.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click_data import Table
from task import Peer, Task

_EVALUATION_BATCH = 16384


class Worker:
    """Answers requests about one peer."""

    def __init__(self) -> None:
        self._peer: Peer | None = None
        self._task: Task | None = None
        self._table: Table | None = None
        self._step = 0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            ValueError: if the request is unknown.
        """
        match request["do"]:
            case "build":
                return self._build(request)
            case "steps":
                return self._steps(request["n"])
            case "evaluate":
                return self._evaluate()
            case "parts":
                return self._parts(request["n"])
        raise ValueError(f"unknown request {request}")

    def _build(self, request: dict[str, Any]) -> dict[str, Any]:
        self._task = Task.from_json(request["task"])
        torch.set_num_threads(self._task.num_threads)
        torch.manual_seed(self._task.seed)
        np.random.seed(self._task.seed)  # noqa: NPY002 (peers draw from the global generator)
        self._table = Table(Path(self._task.data))
        module = importlib.import_module(f"peers.{request['module']}")
        self._peer = module.build(self._task, **request["options"])
        return {"versions": _versions(), "peak_bytes": peak_bytes()}

    def _rows_of_step(self, step: int) -> Any:
        assert self._task is not None
        assert self._table is not None
        assert self._peer is not None
        size = self._task.batch_size
        num_batches = self._table.facts["num_train"] // size
        start = step % num_batches * size
        return self._peer.batch(self._table.rows(start, start + size))

    def _steps(self, n: int) -> dict[str, Any]:
        assert self._peer is not None
        batches = [self._rows_of_step(self._step + i) for i in range(n)]
        started = time.perf_counter()
        for batch in batches:
            self._peer.step(batch)
        seconds = time.perf_counter() - started
        self._step += n
        return {"seconds": seconds, "peak_bytes": peak_bytes()}

    def _evaluate(self) -> dict[str, Any]:
        assert self._table is not None
        assert self._task is not None
        assert self._peer is not None
        first = self._table.facts["num_train"]
        last = first + self._table.facts["num_test"]
        losses = []
        for start in range(first, last, _EVALUATION_BATCH):
            rows = self._table.rows(start, min(start + _EVALUATION_BATCH, last))
            p = np.clip(self._peer.probabilities(self._peer.batch(rows)), 1e-7, 1 - 1e-7)
            losses.append(np.where(rows.labels > 0.5, -np.log(p), -np.log1p(-p)))
        return {
            "logloss": float(np.concatenate(losses).mean()),
            "samples": self._step * self._task.batch_size,
        }

    def _parts(self, n: int) -> dict[str, Any]:
        assert self._peer is not None
        batches = [self._rows_of_step(self._step + i) for i in range(n)]
        seconds = self._peer.parts(batches)
        self._step += n
        return {"seconds": seconds}


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    # Not getrusage, whose figure begins with that of the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM in /proc/self/status")


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "fuxictr", "deepctr-torch", "torchrec", "fbgemm-gpu-cpu", "recemb"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
