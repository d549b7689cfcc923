"""Command-line overrides, checked before any work: a misspelt key names its nearest neighbour."""

import difflib
import re
from collections.abc import Iterator, Sequence
from importlib import resources

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

LEAVE_NO_FILES = (
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)
"""Overrides with which Hydra writes nothing."""


def explain_bad_overrides(config_name: str, arguments: Sequence[str]) -> str | None:
    """Return what is wrong with the overrides among `arguments` and what was probably meant.

    Args:
        config_name: primary configuration, such as "train".
        arguments: the words after the verb; flags are left to Hydra.

    Returns:
        None if they compose. Sweeps (several values for a key) are checked by their keys alone.
    """
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    words = [a for a in arguments if "=" not in a and not a.startswith(("-", "~"))]
    if words and not any(a.startswith("-") for a in arguments):
        return f"'{words[0]}' is not an override; write key=value, for example seed=1"
    if complaint := _explain_launcher(arguments):
        return complaint
    if any(a in ("-m", "--multirun", "-cd", "--config-dir", "-cn") for a in arguments) or any(
        a.startswith("--config-") for a in arguments
    ):
        return None
    GlobalHydra.instance().clear()
    with initialize_config_module("recemb.conf", version_base="1.3"):
        try:
            compose(config_name, overrides=overrides)
        except HydraException as error:
            return _explain(config_name, overrides, error)
    return None


def _explain_launcher(arguments: Sequence[str]) -> str | None:
    """Return what to do about a launcher that Hydra would ignore."""
    chosen = next((a for a in arguments if a.startswith("hydra/launcher=")), None)
    if chosen is None or {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments}:
        return None
    return f"{chosen} launches nothing without -m: recemb train -m {chosen} ..."


def _explain(config_name: str, overrides: Sequence[str], error: HydraException) -> str:
    known = {*_keys(compose(config_name)), *_groups()}
    lines = [str(error).splitlines()[0]]
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = key.split("@")[0]
        if group in _groups():
            options = _options(group)
            if value not in options:
                lines = [f"{group}={value}: there is no such {group}"]
                lines += _nearest(value, options, prefix=f"{group}=")
                break
        elif key not in known and not override.startswith("+"):
            lines = [f"{key}: there is no such key"]
            lines += _nearest(key, known)
            break
    return "\n".join(lines)


def _nearest(word: str, candidates: Sequence[str] | set[str], prefix: str = "") -> list[str]:
    tails = {c.rpartition(".")[2]: c for c in sorted(candidates)}
    found = difflib.get_close_matches(word, sorted(candidates), n=1, cutoff=0.5)
    by_tail = difflib.get_close_matches(word.rpartition(".")[2], sorted(tails), n=1, cutoff=0.7)
    nearest = found[0] if found else tails[by_tail[0]] if by_tail else None
    if nearest:
        return [f"did you mean {prefix}{nearest}?"]
    listed = ", ".join(sorted(candidates)[:40])
    return [f"known: {listed}"]


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a configuration, sections included."""
    for key in map(str, config):
        yield f"{prefix}{key}"
        if not OmegaConf.is_missing(config, key):
            node = config._get_node(key)
            if isinstance(node, DictConfig) and not node._is_none():
                yield from _keys(node, f"{prefix}{key}.")


def _groups() -> set[str]:
    root = resources.files("recemb.conf")
    folders = {p.name for p in root.iterdir() if p.is_dir() and re.fullmatch(r"[a-z]+", p.name)}
    # Hydra's own groups lie one level deeper.
    return {name for name in folders if _options(name)}


def _options(group: str) -> list[str]:
    folder = resources.files("recemb.conf") / group
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml"))
