"""Checkpoints as folders that appear whole or not at all, verified by checksum when read.

A checkpoint is a folder with `state.pt` (tensors and plain values, read with `weights_only=True`:
nothing in it can execute) and `manifest.json` (format version, size, SHA-256). It is written under
a temporary name, flushed to the disk, and renamed; a process killed at any moment leaves either the
finished folder or a temporary one that is never read and is removed by the next writer.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FORMAT_VERSION = 1
_STATE = "state.pt"
_MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, order=True)
class CheckpointName:
    """A checkpoint's name, `<kind>-<step>`; ordered by kind, then step."""

    kind: str
    step: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.step:010d}"


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first one is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, name: CheckpointName, state: Mapping[str, Any]) -> Path:
        """Write `state` (tensors, numbers, strings, lists, dictionaries) and return its folder.

        A complete checkpoint of that name is replaced.

        Raises:
            OSError: if the disk is full or not writable; what was there before is untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        unfinished = self.folder / f"{_UNFINISHED}{name}"
        unfinished.mkdir()
        try:
            _write_state(unfinished, state)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise OSError(
                f"checkpoint {self.folder / str(name)} could not be written ({error}); free some "
                "space or set another paths.run; earlier checkpoints are untouched"
            ) from error
        target = self.folder / str(name)
        if target.exists():
            replaced = self.folder / f"{_UNFINISHED}replaced-{name}"
            target.rename(replaced)
            unfinished.rename(target)
            shutil.rmtree(replaced)
        else:
            unfinished.rename(target)
        _sync(self.folder)
        return target

    def names(self, kind: str) -> list[CheckpointName]:
        """Return the checkpoints of a kind, oldest first; unfinished ones do not count."""
        if not self.folder.is_dir():
            return []
        pattern = re.compile(rf"{re.escape(kind)}-(\d+)")
        found = (pattern.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(CheckpointName(kind, int(m[1])) for m in found if m)

    def load(self, name: CheckpointName) -> dict[str, Any]:
        """Return the state of one checkpoint, tensors on the CPU.

        Raises:
            FileNotFoundError: if there is none of that name.
            ValueError: if it fails its checksum, has a newer format, or carries an object that
                could execute.
        """
        folder = self.folder / str(name)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no checkpoint {folder}")
        _verify(folder)
        try:
            state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"checkpoint {folder} holds something that is neither tensor nor plain value, and "
                "was not opened: weights_only loading refused it"
            ) from error
        assert isinstance(state, dict)
        return state

    def load_newest(self, kind: str) -> tuple[CheckpointName, dict[str, Any]] | None:
        """Return the newest checkpoint of a kind that verifies, or None; warn of the others."""
        for name in reversed(self.names(kind)):
            try:
                return name, self.load(name)
            except (ValueError, OSError) as error:
                warnings.warn(f"passing over a damaged checkpoint: {error}", stacklevel=2)
        return None

    def remove(self, name: CheckpointName) -> None:
        """Remove one checkpoint; it vanishes at once, whatever happens during the removal."""
        doomed = self.folder / f"{_UNFINISHED}removed-{name}"
        (self.folder / str(name)).rename(doomed)
        shutil.rmtree(doomed)

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(path)


def _write_state(folder: Path, state: Mapping[str, Any]) -> None:
    path = folder / _STATE
    torch.save(dict(state), path)
    _sync(path)
    manifest = {
        "format_version": FORMAT_VERSION,
        "size_bytes": path.stat().st_size,
        "sha256": _sha256(path),
    }
    manifest_path = folder / _MANIFEST
    manifest_path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync(manifest_path)
    _sync(folder)


def _verify(folder: Path) -> None:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        version, size, digest = (manifest[k] for k in ("format_version", "size_bytes", "sha256"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {folder} has no readable manifest ({error})") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {folder} has format {version}, but this recemb reads up to "
            f"{FORMAT_VERSION}; use the version that wrote it, or a newer one"
        )
    state = folder / _STATE
    if not state.is_file():
        raise ValueError(f"checkpoint {folder}: {_STATE} is missing")
    if state.stat().st_size != size:
        raise ValueError(
            f"checkpoint {folder}: {_STATE} has {state.stat().st_size} bytes, expected {size}"
        )
    if _sha256(state) != digest:
        raise ValueError(f"checkpoint {folder}: {_STATE} does not match its checksum")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
