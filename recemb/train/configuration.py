"""The composed configuration of a run: its hash, and the guard against mixing two in one folder."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from recemb.checkpoint.atomic import whole_file

# What does not change the result of a run.
_NOT_HASHED = (
    *("paths.", "logger.", "progress", "traceback", "name", "data.raw"),
    *("sharding", "world_size", "timeout_seconds", "stop_before"),
    *("trainer.async_checkpoint", "trainer.keep_checkpoints", "trainer.keep_freed_memory"),
)
DATA = "data.json"
"""What a run folder says of the data that it was trained on."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits that name everything in a configuration that shapes its result.

    Paths, loggers and the run's name do not count.
    """
    counted = {k: v for k, v in _flat(config).items() if not k.startswith(_NOT_HASHED)}
    text = json.dumps(counted, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def claim_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Write `config.yaml` into a new run folder, or check that it is the one that began there.

    Raises:
        ValueError: if another configuration began there; names the first keys that differ.
    """
    path = folder / "config.yaml"
    if not path.exists():
        with whole_file(path) as unfinished:
            unfinished.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        return
    present = yaml.safe_load(path.read_text(encoding="utf-8"))
    if config_hash(present) == config_hash(config):
        return
    before, now = _flat(present), _flat(config)
    differing = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    counted = [k for k in differing if not k.startswith(_NOT_HASHED)]
    shown = "; ".join(f"{k} was {before.get(k)} and is {now.get(k)}" for k in counted[:3])
    raise ValueError(
        f"the run in {folder} began with another configuration: {shown}. Use its configuration to "
        "resume it, or another paths.run to start afresh"
    )


def claim_data(folder: Path, digest: str) -> None:
    """Note in a new run folder which prepared data it reads, or check that they are the same.

    Args:
        folder: of the run.
        digest: names the data's content.

    Raises:
        ValueError: if the run began with others.
    """
    check_data(folder, digest)
    path = folder / DATA
    if not path.exists():
        with whole_file(path) as unfinished:
            unfinished.write_text(json.dumps({"digest": digest}), encoding="utf-8")


def check_data(folder: Path, digest: str) -> None:
    """Check that prepared data are those of a run; runs from before that was noted pass.

    Raises:
        ValueError: if they are not.
    """
    path = folder / DATA
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["digest"] != digest:
        raise ValueError(
            f"the run in {folder} was trained on other data than are prepared now: their raw files "
            "differ. Use another paths.run for these, or prepare the run's own again (another "
            "paths.cache keeps both)"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
