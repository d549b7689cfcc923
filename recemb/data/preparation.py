"""Prepare once: open what is whole and current, otherwise write it, safely.

The set is written into a sibling folder, `.NAME.partial`, put onto the disk, and renamed. Killed at
any moment, that leaves either no set or a whole one; the next run begins again. A lock on the
sibling file `.NAME.lock`, which the system releases when its holder dies, lets several processes
prepare the same set: one works, the others wait and then open the result. (The lock is advisory
and local to one machine; on network file systems without locks prepare from one machine.)
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recemb.data.fingerprint import fingerprints, first_change
from recemb.data.manifest import MANIFEST_NAME, read_manifest, sync_folder
from recemb.data.prepared import Prepared

_LOG = logging.getLogger(__name__)


def prepare_once(
    out: Path,
    *,
    name: str,
    settings: Mapping[str, Any],
    sources: Sequence[Path],
    write: Callable[[Path, Mapping[str, Any]], None],
    overwrite: bool = False,
) -> Prepared:
    """Return the prepared set in `out`, calling `write` if it is not there yet.

    Args:
        out: folder of the prepared set.
        name: the data set's name, for messages.
        settings: all that the result depends on besides the raw files; plain JSON types.
        sources: the raw files, in order. May be empty when they are gone: a complete set is then
            opened without them.
        write: writes a whole set into the empty folder it gets, manifest included; it gets the
            facts to put into the manifest (name, settings, sources).
        overwrite: whether to prepare again whatever set is there.

    Raises:
        ValueError: if `out` was prepared with other settings or from raw files that have changed
            since, or holds something else.
        FileNotFoundError: if there is neither a prepared set nor a raw file.
    """
    settings = json.loads(json.dumps(settings))
    if not overwrite and _why_not_current(out, settings, sources) is None:
        return Prepared(out)
    with _lock(out, name):
        reason = "" if overwrite else _why_not_current(out, settings, sources)
        if reason is None:  # another process has just written it
            return Prepared(out)
        if reason:
            raise ValueError(
                f"data '{name}': {out} cannot be used: {reason}; prepare into another folder "
                "(another paths.cache), or again with overwrite=true (`recemb prepare`): runs that "
                "were trained on what is there then refuse it"
            )
        if out.exists() and not (out / MANIFEST_NAME).exists() and any(out.iterdir()):
            raise ValueError(
                f"data '{name}': {out} holds files but no prepared set; it is not deleted for you: "
                "prepare into another folder or remove it"
            )
        recorded = fingerprints(sources)
        facts = {
            "name": name,
            "settings": settings,
            "settings_sha256": _digest(settings),
            "sources": recorded,
        }
        with _replacing(out) as partial:
            write(partial, facts)
            if change := first_change(recorded, sources):
                raise ValueError(f"data '{name}': while it was being prepared, {change}; try again")
    return Prepared(out)


def _why_not_current(out: Path, settings: Mapping[str, Any], sources: Sequence[Path]) -> str | None:
    """Return None if `out` is complete and current, "" if it is not there, else what differs."""
    try:
        manifest = read_manifest(out)
    except FileNotFoundError:
        return ""
    except ValueError as error:
        return str(error)
    if manifest["settings"] != settings:
        return _first_difference(manifest["settings"], settings, "")
    if sources and (change := first_change(manifest["sources"], sources)):
        return change
    return None


def _first_difference(before: Any, now: Any, path: str) -> str:
    """Return a sentence on the first setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if key not in before:
                return f"setting '{path}{key}' is new ({now[key]!r})"
            if key not in now:
                return f"setting '{path}{key}' is gone (was {before[key]!r})"
            if before[key] != now[key]:
                return _first_difference(before[key], now[key], f"{path}{key}.")
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (a, b) in enumerate(zip(before, now, strict=True)):
            if a != b:
                return _first_difference(a, b, f"{path}{i}.")
    return f"setting '{path.removesuffix('.')}' was {before!r} and is now {now!r}"


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@contextmanager
def _lock(out: Path, name: str) -> Iterator[None]:
    """Hold the lock of `out`, waiting for another process if need be."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.warning("data '%s': another process is preparing %s; waiting for it", name, out)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Give an empty folder that becomes `out` if the body succeeds and is deleted if it fails."""
    partial, old = out.parent / f".{out.name}.partial", out.parent / f".{out.name}.old"
    for left_over in (partial, old):
        if left_over.exists():
            shutil.rmtree(left_over)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        os.rename(out, old)
    os.rename(partial, out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)
