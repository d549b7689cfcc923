"""The cells of a sweep: which there are, and one of them as a configured training run."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from recemb.train.configuration import config_hash

ALL = "all"
_METHOD_KEYS = ("embedding", "label", "budgets", "overrides")
_SWEEP_KEYS = ("methods", "budgets", "seeds", "overrides")
_SWEPT = {"embedding": "methods", "budget": "budgets", "seed": "seeds"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run of a sweep.

    Attributes:
        label: names the method in the rows.
        budget: ratio of the full bytes; None leaves the size to the method.
        seed: of the run.
        overrides: all that `recemb train` is told, bar the run's folder.
    """

    label: str
    budget: float | None
    seed: int
    overrides: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        size = "no budget" if self.budget is None else f"budget {self.budget:g}"
        return f"{self.label}, {size}, seed {self.seed}"

    def row(self) -> dict[str, Any]:
        """Return what names the cell in its row."""
        return {"method": self.label, "budget": self.budget, "seed": self.seed}

    def folder(self, out: Path, config_hash: str) -> Path:
        """Return the folder of the run: readable, and another one for another configuration."""
        budget = "none" if self.budget is None else f"{self.budget:g}"
        label = re.sub(r"[^\w.+-]+", "_", self.label)
        return out / "runs" / f"{label}-{budget}-{self.seed}-{config_hash}"


@dataclass(frozen=True, kw_only=True)
class ComposedCell:
    """A cell with its configuration.

    Attributes:
        cell: the cell.
        config: the composed configuration.
        hash: names all in it that shapes the result.
        choices: the configuration groups' choices, by group.
    """

    cell: Cell
    config: DictConfig
    hash: str
    choices: Mapping[str, str]

    def folder(self, out: Path) -> Path:
        """Return the folder of the run."""
        return self.cell.folder(out, self.hash)


def cells_of(sweep: Mapping[str, Any], *, common: Sequence[str] = ()) -> list[Cell]:
    """Return the cells of a sweep: its methods, with each budget, with each seed.

    Args:
        sweep: `methods`, each a name of conf/embedding, "all" (every name that is not listed by
            itself), or a mapping of `embedding` and, if wanted, `label`, `budgets`, `overrides`;
            `budgets`, ratios or null; `seeds`; `overrides` of `recemb train` for all cells.
        common: further overrides for all cells.

    Raises:
        ValueError: on an unknown key or method, or if two cells are the same.
    """
    _check_keys("sweep", sweep, _SWEEP_KEYS)
    for word in common:
        if (key := word.partition("=")[0].lstrip("+~")) in _SWEPT:
            raise ValueError(
                f"sweep: {word} is for one run; a sweep has sweep.{_SWEPT[key]}=[...] of them"
            )
    for key in ("methods", "budgets", "seeds"):
        if not isinstance(sweep[key], Sequence) or isinstance(sweep[key], str):
            raise ValueError(f"sweep.{key} is a list, sweep.{key}=[...], got {sweep[key]!r}")
    cells = [
        Cell(
            label=str(method.get("label", method["embedding"])),
            budget=None if budget is None else float(budget),
            seed=int(seed),
            overrides=(
                *sweep.get("overrides", ()),
                *common,
                f"embedding={method['embedding']}",
                *([] if budget is None else [f"budget={budget}"]),
                f"seed={seed}",
                *method.get("overrides", ()),
            ),
        )
        for method in _methods(sweep["methods"])
        for budget in method.get("budgets", sweep["budgets"])
        for seed in sweep["seeds"]
    ]
    names = [str(cell) for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"sweep: {twice[0]} occurs twice; give one of the methods another label")
    if not cells:
        raise ValueError("sweep: there is no cell; give methods, budgets and seeds")
    return cells


def compose_cell(cell: Cell) -> ComposedCell:
    """Return a cell with the configuration that `recemb train` composes from its overrides.

    From here on, Hydra's global state is that of this configuration.

    Raises:
        HydraException: if an override is wrong.
    """
    GlobalHydra.instance().clear()
    with initialize_config_module("recemb.conf", version_base="1.3"):
        config = compose("train", overrides=list(cell.overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    choices = {str(k): str(v) for k, v in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config["hydra"]
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return ComposedCell(
        cell=cell,
        config=config,
        hash=config_hash({str(k): v for k, v in plain.items()}),
        choices=choices,
    )


def quoted(key: str, value: object) -> str:
    """Return the override that sets `key` to a text, whatever characters it has."""
    # Hydra takes backslashes literally, but for those before a quote and at the end.
    text = re.sub(r"(\\+)('|$)", r"\1\1\2", str(value)).replace("'", "\\'")
    return f"{key}='{text}'"


def _methods(entries: Sequence[Any]) -> list[dict[str, Any]]:
    known = sorted(
        path.name.removesuffix(".yaml")
        for path in (resources.files("recemb.conf") / "embedding").iterdir()
        if path.name.endswith(".yaml")
    )
    given = [{"embedding": e} if isinstance(e, str) else dict(e) for e in entries]
    for method in given:
        _check_keys("sweep: a method", method, _METHOD_KEYS)
        if method.get("embedding") not in (*known, ALL):
            raise ValueError(
                f"sweep: there is no method {method.get('embedding')!r}; there are {known}"
            )
    named = {method["embedding"] for method in given}
    methods = []
    for method in given:
        rest = [name for name in known if name not in named]
        names = rest if method["embedding"] == ALL else [method["embedding"]]
        methods += [{**method, "embedding": name} for name in names]
    return methods


def _check_keys(owner: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown := sorted(given.keys() - set(known)):
        raise ValueError(f"{owner} has no key {unknown}; it knows {list(known)}")
