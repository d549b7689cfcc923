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


_SWEEP, _SWEEP_PREFIXES = ("sweep", "out", "traceback"), ("sweep.", "paths.", "hydra")


def explain_line(verb: str, words: Sequence[str]) -> str | None:
    """Return what is wrong with the words after a verb and what was probably meant; None if fine.

    Imports nothing but Hydra, so that a misspelt key is answered at once.
    """
    match verb:
        case "train" | "plan":
            return explain_bad_overrides("train", words)
        case "predict":
            return explain_bad_overrides(verb, predict_words(words))
        case "inspect":
            return explain_bad_overrides(verb, inspect_words(words))
        case "sweep":
            own, common = sweep_words(words)
            return explain_bad_overrides("train", common) or explain_bad_overrides(verb, own)
        case _:
            return explain_bad_overrides(verb, words)


def predict_words(words: Sequence[str]) -> list[str]:
    """Return the words of `recemb predict` as Hydra is to read them.

    To Hydra, model=FILE would choose from the configuration group of that name.
    """
    return [f"file={word[6:]}" if word.startswith("model=") else word for word in words]


def inspect_words(words: Sequence[str]) -> list[str]:
    """Return the words of `recemb inspect` as Hydra is to read them: a word alone is the run."""
    return [w if "=" in w or w.startswith("-") else f"run={w}" for w in words]


def sweep_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words that are the sweep's own, and the overrides of `recemb train` in all cells.

    What is neither a flag nor the sweep's is an override for all cells.
    """
    own = [word for word in words if _is_of_sweep(word)]
    return own, [word for word in words if not _is_of_sweep(word)]


def _is_of_sweep(word: str) -> bool:
    key = word.partition("=")[0].lstrip("+~")
    return "=" not in word or key in _SWEEP or key.startswith(_SWEEP_PREFIXES)


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
    chosen = [o for o in overrides if _is_choice(o)]
    known = {*_keys(compose(config_name, overrides=chosen)), *_groups()}
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


def _is_choice(override: str) -> bool:
    """Return whether an override chooses one of a group's files, which then says what keys are."""
    group, _, value = override.partition("=")
    return group in _groups() and value in _options(group)


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
