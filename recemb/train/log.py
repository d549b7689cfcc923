"""The record of a run: `metrics.jsonl`, TensorBoard events, the progress bar.

`metrics.jsonl` holds only what the run computes, no times of day and no speeds, so that a resumed
run's file is byte for byte that of an undisturbed one. Speeds go to TensorBoard and the summary.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tqdm import tqdm


class Tracker(Protocol):
    """Where a run's scalars go beside `metrics.jsonl`."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of an update."""

    def close(self) -> None:
        """Flush and close."""


class TensorBoard:
    """Scalars as TensorBoard events.

    Args:
        folder: where the events go.
        purge_step: events from this update on are discarded; what a resumed run passes.

    Raises:
        ImportError: if the package tensorboard is missing; names the fix.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "logger=tensorboard needs the package tensorboard: pip install tensorboard, or set "
                "logger=none"
            ) from error
        self._writer = SummaryWriter(folder, purge_step=purge_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of an update."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class NoTracker:
    """Records nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class RunLog:
    """The record of one run.

    Args:
        path: the JSONL file.
        tracker: where scalars go too.
        show_progress: whether to draw a progress bar on standard error.
    """

    def __init__(self, path: Path, *, tracker: Tracker, show_progress: bool = True) -> None:
        self.path = path
        self.tracker = tracker
        self.show_progress = show_progress
        self._bar: tqdm[None] | None = None

    def size_bytes(self) -> int:
        """Return the length of the JSONL file, flushed to the disk."""
        if not self.path.exists():
            return 0
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def truncate(self, size_bytes: int) -> None:
        """Cut the JSONL file back to what it was when a checkpoint was written.

        Raises:
            ValueError: if it is shorter than that, so that rows were lost by other hands.
        """
        present = self.path.stat().st_size if self.path.exists() else 0
        if present < size_bytes:
            raise ValueError(
                f"{self.path} has {present} bytes, but the checkpoint to resume from was written "
                f"when it had {size_bytes}; rows are missing, so start again in another paths.run"
            )
        if self.path.exists():
            os.truncate(self.path, size_bytes)

    def row(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Append one row and pass it to the tracker; NaN is written as null."""
        plain = {k: None if math.isnan(v) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "epoch": epoch, **plain}) + "\n")
        self.tracker.scalars(step, values)

    def start_epoch(self, label: str, *, total: int, done: int) -> None:
        """Begin the bar of an epoch of `total` updates, `done` of them behind us."""
        self.end_epoch()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=label,
            unit="step",
            disable=not self.show_progress,
            leave=True,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )

    def advance(self) -> None:
        """Move the bar by one update."""
        if self._bar is not None:
            self._bar.update()

    def show(self, values: Mapping[str, float]) -> None:
        """Show values at the end of the bar."""
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.5f}" for k, v in values.items()}, refresh=False)

    def end_epoch(self) -> None:
        """End the bar of the epoch."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def message(self, text: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Close the bar and the tracker."""
        self.end_epoch()
        self.tracker.close()


class QuietLog(RunLog):
    """The log of a process that leaves writing and printing to another."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull), tracker=NoTracker(), show_progress=False)

    def size_bytes(self) -> int:
        """Return 0: it has no file."""
        return 0

    def truncate(self, size_bytes: int) -> None:
        """Do nothing."""

    def row(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""
