"""Whether raw files have changed since they were prepared.

A fingerprint is the file's name, size, modification time, change time, inode and the SHA-256 of its
whole content. When size, both times and inode are as recorded, the file is unchanged: any write
moves the change time, which no ordinary program can set back. When only times or inode differ (a
copy, a `touch`), the content is read and its SHA-256 decides. So no change goes unnoticed, and the
usual check reads nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recemb.data.manifest import sha256

_STAT_FIELDS = ("mtime_ns", "ctime_ns", "inode")


def stat_entry(path: Path) -> dict[str, Any]:
    """Return name, size, times and inode of a file."""
    stat = path.stat()
    return {
        "name": path.name,
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def fingerprints(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the fingerprint of each file; reads them whole."""
    return [{**stat_entry(path), "sha256": sha256(path)} for path in paths]


def first_change(recorded: Sequence[dict[str, Any]], paths: Sequence[Path]) -> str | None:
    """Return what is different about the raw files, or None if nothing is."""
    names, now = [r["name"] for r in recorded], [p.name for p in paths]
    if names != now:
        return f"the raw files were {names} and are now {now}"
    for entry, path in zip(recorded, paths, strict=True):
        stat = stat_entry(path)
        if stat["bytes"] != entry["bytes"]:
            sizes = f"had {entry['bytes']} bytes and now has {stat['bytes']}"
            return f"{path.name} {sizes} ({path})"
        if any(stat[f] != entry[f] for f in _STAT_FIELDS) and sha256(path) != entry["sha256"]:
            return f"the content of {path} has changed, or it is another file"
    return None
