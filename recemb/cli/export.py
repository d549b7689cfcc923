"""`recemb export`: a finished run as one file for serving."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig, OmegaConf

from recemb.checkpoint.archive import DESCRIPTION
from recemb.checkpoint.export import export, servable_from
from recemb.checkpoint.post_training import quantise_tables
from recemb.cli.failure import USER_ERROR, user_errors
from recemb.cli.overrides import explain_bad_overrides
from recemb.cli.prepare import find_prepared
from recemb.cli.train import experiment_of
from recemb.train.restore import restore
from recemb.train.summary import read_summary, versions

LEAVE_NO_FILES = (
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)
_TRUSTED = ("recemb.", "torch.optim.")
_FACTS = ("metrics", "ratio", "seed", "config_hash", "epochs", "best_step")


def run(arguments: list[str]) -> int:
    """Run the verb; return the exit status."""
    if complaint := explain_bad_overrides("export", arguments):
        print(f"recemb export: {complaint}", file=sys.stderr)
        return USER_ERROR
    sys.argv = ["recemb export", *arguments, *LEAVE_NO_FILES]
    hydra.main(config_path="pkg://recemb.conf", config_name="export", version_base="1.3")(main)()
    return 0


def main(config: DictConfig) -> None:
    """Write the file and print what is in it."""
    with user_errors("export", traceback=config.traceback):
        for key in ("run", "out"):
            if OmegaConf.is_missing(config, key):
                raise ValueError(f"{key} is missing; write recemb export run=FOLDER out=FILE")
        sizes = export_run(config)
    out = Path(config.out)
    print(f"exported {out}")
    for name, num_bytes in sizes.items():
        print(f"  {name:<22} {num_bytes:>16,} bytes")
    print(f"  {'whole file':<22} {out.stat().st_size:>16,} bytes, {DESCRIPTION} included")


def export_run(config: DictConfig) -> dict[str, int]:
    """Write the configured run as one file; return the bytes of its members.

    Raises:
        ValueError: if the run has not finished, or cannot be exported.
        FileNotFoundError: if there is no such run, or its prepared data are gone.
    """
    folder = Path(config.run)
    plain = _configuration(folder)
    summary = read_summary(folder / "summary.json")
    if summary is None:
        raise ValueError(
            f"the run in {folder} has not finished; run its command again, with paths.run={folder}"
        )
    _check_targets(plain, trusted=config.trust_targets)
    described = OmegaConf.create(plain)
    described.trainer.device = "cpu"
    cache = Path(config.cache if config.cache is not None else described.paths.cache)
    prepared = find_prepared(described, cache)
    experiment = experiment_of(described, prepared, resume_command="")
    tables, model = restore(experiment, folder=folder)
    trained_bytes = tables.storage().serve_bytes
    tables = quantise_tables(tables, config.post)
    facts = {key: summary.get(key) for key in _FACTS} | {
        "method": plain["embedding"],
        "data": {"name": prepared.manifest["name"]},
        "train_bytes": summary["bytes"]["train"],
        "post": {"form": config.post, "serve_bytes_before": trained_bytes},
        "versions": {"training": summary["versions"], "export": versions()},
    }
    options = OmegaConf.to_container(described.model, resolve=True)
    assert isinstance(options, dict)
    servable = servable_from(
        prepared,
        tables=tables,
        model=model,
        model_settings={str(k): v for k, v in options.items() if not str(k).startswith("_")},
        facts=facts,
    )
    return export(servable, Path(config.out))


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
