"""A finished run, found again from its folder."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from recemb.cli.prepare import find_prepared
from recemb.cli.train import experiment_of
from recemb.data.prepared import Prepared
from recemb.models.click_model import ClickModel
from recemb.tables.tables import Tables
from recemb.train.configuration import check_data
from recemb.train.restore import restore
from recemb.train.summary import read_summary

_OWN, _OPTIMIZERS = "recemb.", "torch.optim."


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a run leaves.

    Attributes:
        config: its configuration, resolved, on the CPU.
        summary: its figures.
        prepared: its data.
        tables: with the weights with which it ended.
        model: likewise.
    """

    config: DictConfig
    summary: Mapping[str, Any]
    prepared: Prepared
    tables: Tables
    model: ClickModel


def finished_run(folder: Path, *, cache: str | None, trusted: bool) -> FinishedRun:
    """Return the run in a folder; nothing is trained, and nothing in the folder changes.

    Args:
        folder: of the run, its paths.run.
        cache: where its prepared data lie; None is where the run had them.
        trusted: make what its configuration names although no configuration of recemb's does.

    Raises:
        ValueError: if the run has not finished, or its configuration names what is not trusted.
        FileNotFoundError: if there is no such run, or its prepared data are gone.
    """
    plain = _configuration(folder)
    summary = read_summary(folder / "summary.json")
    if summary is None:
        raise ValueError(
            f"the run in {folder} has not finished; run its command again, with paths.run={folder}"
        )
    if not trusted:
        _check_targets(plain)
    config = OmegaConf.create(plain)
    config.trainer.device = "cpu"
    prepared = find_prepared(config, Path(config.paths.cache if cache is None else cache))
    check_data(folder, prepared.digest)
    experiment = experiment_of(config, prepared, resume_command="")
    tables, model = restore(experiment, folder=folder)
    return FinishedRun(
        config=config, summary=summary, prepared=prepared, tables=tables, model=model
    )


def _configuration(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run: it has no {path.name}; name a run's folder")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return {str(k): v for k, v in found.items()}


def _check_targets(config: Mapping[str, Any]) -> None:
    """Refuse to make anything but what recemb's own configurations name, and torch's optimizers.

    Hydra makes whatever can be reached by attributes of modules, `recemb.x.torch.load` too, and
    interpolations make sections out of words. So a name must be one of those that are known, to the
    letter; nothing is imported to find that out.

    Raises:
        ValueError: naming the first.
    """
    for where, value in _leaves(config):
        if where.split(".")[-1] == "_target_":
            if str(value) not in _packaged_targets() and not _is_optimizer(str(value)):
                raise ValueError(
                    f"the run's configuration makes a {value} ({where}), which none of recemb's "
                    "own does, and which could do anything; if the folder is yours, set "
                    "trust_targets=true"
                )
        elif isinstance(value, str) and "${" in value:
            raise ValueError(
                f"the run's configuration has an interpolation, {value} ({where}), which a run "
                "does not write, and which could make anything; if the folder is yours, set "
                "trust_targets=true"
            )


def _is_optimizer(target: str) -> bool:
    """Return whether a name is `torch.optim.` and that of an optimizer."""
    if not target.startswith(_OPTIMIZERS):
        return False
    found = vars(torch.optim).get(target.removeprefix(_OPTIMIZERS))
    return isinstance(found, type) and issubclass(found, torch.optim.Optimizer)


@functools.cache
def _packaged_targets() -> frozenset[str]:
    """Return what recemb's own configurations make, of recemb."""
    found = (
        str(value)
        for file in _yaml_files(resources.files("recemb.conf"))
        for where, value in _leaves(yaml.safe_load(file.read_text(encoding="utf-8")))
        if where.split(".")[-1] == "_target_"
    )
    return frozenset(name for name in found if name.startswith(_OWN))


def _yaml_files(folder: Traversable) -> Iterator[Traversable]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _yaml_files(entry)
        elif entry.name.endswith(".yaml"):
            yield entry


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is not a container, at any depth, and its place in dots.

    What is made is one leaf, its name, whatever type that has.
    """
    entries: Any = ()
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, list | tuple | set | frozenset):
        entries = enumerate(value)
    else:
        yield where, value
    for key, its in entries:
        place = f"{where}.{key}" if where else str(key)
        if key == "_target_":
            yield place, its
        else:
            yield from _leaves(its, place)
