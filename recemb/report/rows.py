"""Rows of results: one for each cell of a sweep, in one CSV file."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from recemb.checkpoint.atomic import whole_file

Row = Mapping[str, Any]
Status = Literal["ok", "infeasible", "failed"]

_FIRST = (
    *("method", "budget", "seed", "status", "ratio", "full_bytes", "serve_bytes", "train_bytes"),
    *("floor_ratio", "floor_bytes"),
)
_LAST = (
    *("epochs", "steps", "best_step", "seconds", "training_seconds", "samples_per_second"),
    *("peak_memory_bytes", "data", "model", "config_hash", "commit", "versions", "cpu", "gpu"),
    *("threads", "run", "error"),
)


def finished_row(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the summary of a finished run has for a row."""
    size, hardware = summary["bytes"], summary["hardware"]
    return {
        "status": "ok",
        "ratio": summary["ratio"],
        "full_bytes": size["full"],
        "serve_bytes": size["serve"],
        "train_bytes": size["train"],
        **summary["metrics"],
        **{name: summary.get(name) for name in _LAST[:7]},
        "config_hash": summary["config_hash"],
        "versions": " ".join(f"{k}={v}" for k, v in summary["versions"].items()),
        "cpu": hardware["cpu"],
        "gpu": hardware.get("gpu"),
        "threads": hardware["threads"],
    }


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, whole or not at all; metrics stand in the middle, None is empty."""
    known = {*_FIRST, *_LAST}
    metrics = list(dict.fromkeys(key for row in rows for key in row if key not in known))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_FIRST, *metrics, *_LAST], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path) as unfinished:
        unfinished.write_text(text.getvalue(), encoding="utf-8", newline="")
