"""A finished run, found again from its folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from recemb.cli.prepare import find_prepared
from recemb.cli.train import experiment_of
from recemb.data.prepared import Prepared
from recemb.models.click_model import ClickModel
from recemb.tables.tables import Tables
from recemb.train.restore import restore
from recemb.train.summary import read_summary

_TRUSTED = ("recemb.", "torch.optim.")


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
        trusted: make what its configuration names although it is not part of recemb.

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
    _check_targets(plain, trusted=trusted)
    config = OmegaConf.create(plain)
    config.trainer.device = "cpu"
    prepared = find_prepared(config, Path(config.paths.cache if cache is None else cache))
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


def _check_targets(config: Mapping[str, Any], *, trusted: bool) -> None:
    """Refuse to make what is neither recemb's nor one of torch's optimizers.

    Raises:
        ValueError: naming the first.
    """
    for where, target in _targets(config):
        if not trusted and not target.startswith(_TRUSTED):
            raise ValueError(
                f"the run's configuration makes a {target} ({where}), which is not recemb's and "
                "could do anything; if the folder is yours, set trust_targets=true"
            )


def _targets(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """Yield where something is made, and what."""
    for key, value in config.items():
        if key == "_target_":
            yield f"{where}{key}", str(value)
        values = value if isinstance(value, list) else [value]
        for item in values:
            if isinstance(item, Mapping):
                yield from _targets(item, f"{where}{key}.")
