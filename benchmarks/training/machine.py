"""What every row of a benchmark carries: commit, hardware, system. Run it to see it as JSON."""

import json
import os
import platform
import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = "benchmarks/results"


def context() -> dict[str, str]:
    """Return commit and hardware."""
    return {
        "commit": commit(),
        "cpu": f"{_cpu()}, {os.cpu_count()} cores",
        "memory": f"{_memory_bytes() / 1e9:.0f} GB",
        "load_at_start": f"{os.getloadavg()[0]:.1f}",
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the commit of this checkout, with "+changes" if more than results differs from it."""
    found = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", ":/", f":!{_RESULTS}")
    return found + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _memory_bytes() -> int:
    first = Path("/proc/meminfo").read_text().splitlines()[0]
    return int(first.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(context()))
