"""`recemb sweep`: methods x budgets x seeds, a row of results for each.

Each cell is a run of `recemb train` in a process of its own: what it leaves in memory, its threads
and its crash are its own, and its peak of memory is measured by itself. It costs the seconds that
importing takes. A cell whose run has finished is not run again; one that was killed is resumed.
"""

import fcntl
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from recemb.cli.cell import Cell, ComposedCell, cells_of, compose_cell, quoted
from recemb.cli.failure import user_errors
from recemb.cli.overrides import LEAVE_NO_FILES, sweep_words
from recemb.cli.plan import plan_of
from recemb.cli.prepare import find_prepared
from recemb.cli.status import INTERRUPTED
from recemb.report.rows import finished_row, write_rows
from recemb.train.configuration import check_data
from recemb.train.summary import read_summary

ROWS, OUTPUT, _LOCK, _FACTS = "rows.csv", "output.txt", ".lock", "cell.json"
_SAVING_SECONDS = 60


def run(arguments: list[str]) -> int:
    """Run the verb; return the exit status: 1 if a cell failed."""
    own, common = sweep_words(arguments)
    sys.argv = ["recemb sweep", *own, *LEAVE_NO_FILES]
    given: list[Mapping[str, Any]] = []

    def note(config: DictConfig) -> None:
        plain = OmegaConf.to_container(config, resolve=True)
        assert isinstance(plain, dict)
        given.append({str(k): v for k, v in plain.items()})

    hydra.main(config_path="pkg://recemb.conf", config_name="sweep", version_base="1.3")(note)()
    if not given:  # --help or --cfg
        return 0
    with user_errors("sweep", traceback=bool(given[0]["traceback"])):
        cells = cells_of(given[0]["sweep"], common=[*common, *_paths(given[0])])
        try:
            with _stopping_children():
                return Sweep(cells, Path(given[0]["out"])).run()
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on where this one ended", file=sys.stderr)
            return INTERRUPTED


class Sweep:
    """Some cells, their runs, and the file of their rows.

    Args:
        cells: what to run, in order.
        out: folder of the runs, and of `rows.csv`.
    """

    def __init__(self, cells: list[Cell], out: Path) -> None:
        self.cells = cells
        self.out = out
        self.rows: list[dict[str, Any] | None] = [None] * len(cells)

    def run(self) -> int:
        """Run what is not done; return 1 if a cell failed, else 0.

        The file of rows is written anew, whole, after each cell.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with _lock(self.out / _LOCK) as lock:
            for index, cell in enumerate(self.cells):
                self.rows[index] = self._done(cell)
            self._write()
            for index, cell in enumerate(self.cells):
                if self.rows[index] is None:
                    print(f"[{index + 1}/{len(self.cells)}] {cell} ...", flush=True)
                    self.rows[index] = self._attempt(cell, lock)
                    self._write()
                print(f"[{index + 1}/{len(self.cells)}] {cell}: {_said(self.rows[index])}")
        failed = sum(row is not None and row["status"] == "failed" for row in self.rows)
        print(f"rows     {self.out / ROWS}" + (f", {failed} of them failed" if failed else ""))
        return 1 if failed else 0

    def _done(self, cell: Cell) -> dict[str, Any] | None:
        """Return the row of a cell whose run has finished, None for another."""
        some = cell.folder(self.out, "*")
        if not any(some.parent.glob(some.name)):
            return None  # composing hundreds of cells would take minutes
        try:
            composed = compose_cell(cell)
        except HydraException:
            return None
        return self._finished(composed)

    def _attempt(self, cell: Cell, lock: int) -> dict[str, Any]:
        """Return the row of a cell, run now."""
        try:
            composed = compose_cell(cell)
            plan = plan_of(composed.config)
        except Exception as error:  # whatever it is, the other cells are to go on
            return cell.row() | {"status": "failed", "error": _line(f"{error}")}
        if not plan.is_feasible:
            return self._named(composed) | {
                "status": "infeasible",
                "full_bytes": plan.storage.full_bytes,
                "floor_ratio": plan.ratio,
                "floor_bytes": plan.storage.serve_bytes,
            }
        status = self._train(composed, lock)
        if found := self._finished(composed):
            return found
        return self._named(composed) | {
            "status": "failed",
            "error": _why(composed.folder(self.out) / OUTPUT, status),
        }

    def _train(self, composed: ComposedCell, lock: int) -> int:
        """Train a cell in a process of its own; return its exit status."""
        folder = composed.folder(self.out)
        folder.mkdir(parents=True, exist_ok=True)
        words = [*composed.cell.overrides, "progress=false", quoted("paths.run", folder)]
        facts = {"commit": _commit(), "command": ["recemb", "train", *words]}
        (folder / _FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        with (folder / OUTPUT).open("wb") as output:
            # The child keeps the lock: nobody else trains in its folder, even if we are killed.
            process = subprocess.Popen(
                [sys.executable, "-m", "recemb", "train", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
            )
            try:
                status = process.wait()
            except KeyboardInterrupt:
                _end(process)
                raise
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        return status

    def _finished(self, composed: ComposedCell) -> dict[str, Any] | None:
        folder = composed.folder(self.out)
        summary = read_summary(folder / "summary.json")
        if summary is None or summary.get("config_hash") != composed.hash:
            return None
        with suppress(FileNotFoundError):  # without its data the row stands
            prepared = find_prepared(composed.config, Path(composed.config.paths.cache))
            check_data(folder, prepared.digest)
        facts = folder / _FACTS
        commit = json.loads(facts.read_text(encoding="utf-8"))["commit"] if facts.exists() else None
        return self._named(composed) | finished_row(summary) | {"commit": commit}

    def _named(self, composed: ComposedCell) -> dict[str, Any]:
        return composed.cell.row() | {
            "data": composed.choices["data"],
            "model": composed.choices["model"],
            "config_hash": composed.hash,
            "run": str(composed.folder(self.out).relative_to(self.out)),
        }

    def _write(self) -> None:
        write_rows(self.out / ROWS, [row for row in self.rows if row is not None])


def _paths(config: Mapping[str, Any]) -> list[str]:
    """Return the overrides that make all cells read and prepare data where the sweep does."""
    return [quoted(f"paths.{key}", config["paths"][key]) for key in ("data", "cache")]


@contextmanager
def _lock(path: Path) -> Iterator[int]:
    """Hold a lock that children inherit; wait while another sweep, or a child of one, has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another sweep is at work in {path.parent}; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


@contextmanager
def _stopping_children() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C within this context, so that a child is ended, too."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Let a child save itself, then end it whatever it does."""
    process.terminate()
    try:
        process.wait(_SAVING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _commit() -> str | None:
    """Return the commit of the checkout that recemb runs from, None if it runs from none."""
    spec = importlib.util.find_spec("recemb")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent.parent
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+changes"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _why(output: Path, status: int) -> str:
    """Return the last line that a child printed, and how it ended."""
    lines = output.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return _line(f"{said[-1] if said else 'nothing was printed'} (ended with {ended}; {output})")


def _line(text: str) -> str:
    return " ".join(text.split())[:1000]


def _said(row: Mapping[str, Any] | None) -> str:
    assert row is not None
    if row["status"] == "infeasible":
        return f"infeasible, the least is {row['floor_ratio']:.5f}"
    if row["status"] == "failed":
        return f"failed: {row['error']}"
    auc = row.get("test/auc")
    shown = "" if auc is None else f"test/auc {auc:.5f}, "
    return f"{shown}ratio {row['ratio']:.5f}, {row['seconds']:.0f} s"
