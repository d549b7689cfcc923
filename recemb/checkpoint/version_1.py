"""Checkpoints of format 1: one pickle of tensors and plain values, with a size and a SHA-256.

Read, not written. The pickle is opened by torch's restricted reader, which makes tensors and plain
values and refuses everything else.
"""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch

from recemb.checkpoint.manifest import FILE

_STATE = "state.pt"
_CHUNK_BYTES = 1 << 22


def load(folder: Path) -> dict[str, Any]:
    """Return the state of a checkpoint.

    Raises:
        ValueError: if it is damaged, or carries an object that could execute.
    """
    _verify(folder)
    try:
        state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(
            "it holds something that is neither tensor nor plain value, and was not opened: "
            "weights_only loading refused it"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"its state is a {type(state).__name__}, not a dictionary")
    return state


def _verify(folder: Path) -> None:
    try:
        manifest = json.loads((folder / FILE).read_bytes())
        size, expected = manifest["size_bytes"], manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"it has no readable manifest ({error!r})") from error
    state = folder / _STATE
    if not state.is_file():
        raise ValueError(f"{_STATE} is missing")
    if state.stat().st_size != size:
        raise ValueError(f"{_STATE} has {state.stat().st_size} bytes, expected {size}")
    digest = hashlib.sha256()
    with state.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise ValueError(f"{_STATE} does not match its checksum")
