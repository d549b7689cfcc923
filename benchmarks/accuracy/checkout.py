"""The commit that a benchmark's rows carry."""

import subprocess
from pathlib import Path


def commit() -> str:
    """Return the commit of this checkout, with "+changes" if more than results differs from it."""
    folder = Path(__file__).parent
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ":/", ":!../results")
    return _git(folder, "rev-parse", "--short", "HEAD") + ("+changes" if changed else "")


def _git(folder: Path, *words: str) -> str:
    run = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.strip()
