"""The closing summary of a run: `summary.json`, and the same for a reader."""

import json
import math
import os
import platform
import resource
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("recemb", "torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "triton", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str | int]:
    """Return the processor, its threads in use, and the GPU if there is one."""
    facts: dict[str, str | int] = {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def peak_memory_bytes() -> int:
    """Return the largest resident size that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary whole or not at all; NaN becomes null."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(_plain(summary), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def read_summary(path: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run, or None if there is none."""
    if not path.is_file():
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(summary, dict)
    return summary


def describe(summary: Mapping[str, Any]) -> str:
    """Return the summary as lines for a reader, the best reachable figures beside the run's own."""
    metrics, reference = summary["metrics"], summary["reference"]
    lines = [f"run      {summary['folder']}"]
    for split in ("val", "test"):
        parts = []
        for name, value in metrics.items():
            if not name.startswith(f"{split}/") or value is None:
                continue
            best = reference.get(name)
            beside = f" (best reachable {best:.5f})" if best is not None else ""
            parts.append(f"{name.removeprefix(f'{split}/')} {value:.5f}{beside}")
        if parts:
            lines.append(f"{split:<8} " + ", ".join(parts))
    size = summary["bytes"]
    lines += [
        f"tables   {_mebibytes(size['serve'])} to serve, {_mebibytes(size['train'])} to train; "
        f"ratio to full fp32 {summary['ratio']:.4f}",
        f"speed    {summary['samples_per_second']:,.0f} samples/s, {summary['seconds']:.0f} s in "
        f"all, {summary['epochs']} epoch(s), {summary['steps']:,} updates, best after "
        f"{summary['best_step']:,}",
    ]
    return "\n".join(lines)


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
