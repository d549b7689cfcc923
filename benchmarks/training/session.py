"""The driver's end of a worker process."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from task import Task

_WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One line of the table: a peer in one setting.

    Attributes:
        name: as printed.
        environment: which environment it runs in; None for the one that runs the driver.
        module: its file under `peers`.
        options: keyword arguments of that file's `build`.
        models: what it offers.
        copies: how many times the bytes of the fp32 tables it holds while it trains.
        needs_bf16: whether it is measured only on a CPU with bf16 instructions.
    """

    name: str
    environment: str | None
    module: str
    options: dict[str, Any]
    models: tuple[str, ...] = ("deepfm", "dlrm")
    copies: float = 1.1
    needs_bf16: bool = False

    @property
    def is_ours(self) -> bool:
        """Return whether this is recemb."""
        return self.module == "recemb"


class Session:
    """A running worker; closing it ends the process.

    Raises:
        RuntimeError: if the worker dies, with its request.
    """

    def __init__(self, contender: Contender, python: Path, task: Task, log: Path) -> None:
        self.contender = contender
        threads = str(task.num_threads)
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [str(python), str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={
                **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
            },
        )
        self._log_path = log
        self.versions: dict[str, str] = self.ask(
            do="build",
            module=contender.module,
            task=task.to_json(),
            options=contender.options,
        )["versions"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the worker's answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(
                f"worker of '{self.contender.name}' ended with {code} on request "
                f"'{request['do']}'; see {self._log_path}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if kind is not None:
            self._process.terminate()
        self._process.wait()
        self._log.close()
