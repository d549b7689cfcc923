"""`recemb prepare`: raw files to prepared columns, out of core."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from recemb.cli.failure import user_errors
from recemb.data.dataset import Dataset
from recemb.data.manifest import MANIFEST_NAME
from recemb.data.prepared import Prepared


def run(arguments: list[str]) -> int:
    """Run the verb; return the exit status."""
    sys.argv = ["recemb prepare", *arguments]
    hydra.main(config_path="pkg://recemb.conf", config_name="prepare", version_base="1.3")(main)()
    return 0


def main(config: DictConfig) -> None:
    """Prepare the configured data set and print what came of it."""
    with user_errors("prepare", traceback=config.traceback):
        prepared = prepare_from(config, overwrite=config.overwrite)
    rows = ", ".join(f"{split} {prepared.num_rows(split):,}" for split in prepared.splits)
    num_ids = sum(c.num_embeddings for c in prepared.schema.categorical)
    print(f"prepared {prepared.folder}")
    print(f"rows     {rows}")
    print(
        f"columns  {len(prepared.schema.dense)} dense, {len(prepared.schema.categorical)} "
        f"categorical with {num_ids:,} ids"
    )


def prepare_from(config: DictConfig, *, overwrite: bool) -> Prepared:
    """Return the prepared data that a configuration describes, preparing them if needed.

    They lie under `paths.cache` in a folder named after the data set and the hash of its settings,
    so that other settings get another folder.
    """
    settings, raw = _settings(config)
    name = HydraConfig.get().runtime.choices["data"] if HydraConfig.initialized() else "data"
    out = Path(config.paths.cache) / f"{name}-{_digest(settings)}"
    dataset = instantiate(settings)
    if not isinstance(dataset, Dataset):
        raise ValueError(f"data._target_ {settings.get('_target_')} is not a recemb Dataset")
    return dataset.prepare(Path(raw or "."), out, overwrite=overwrite)


def find_prepared(config: DictConfig, cache: Path) -> Prepared:
    """Return the prepared data that a configuration describes, from where they were put.

    Args:
        config: a composed configuration.
        cache: the folder of prepared data.

    Raises:
        FileNotFoundError: if they are not there.
    """
    settings, _ = _settings(config)
    found = sorted(cache.glob(f"*-{_digest(settings)}/{MANIFEST_NAME}"))
    if not found:
        raise FileNotFoundError(
            f"there are no prepared data of these settings in {cache}; set cache=FOLDER to where "
            "the run had them (its paths.cache), or prepare them again"
        )
    return Prepared(found[0].parent)


def _settings(config: DictConfig) -> tuple[dict[str, Any], str | None]:
    """Return the data set's settings, and where its raw files are, which is none of them.

    Raises:
        ValueError: if one must be given, and is not.
    """
    if missing := sorted(map(str, OmegaConf.missing_keys(config.data))):
        raise ValueError(f"{missing[0]} is missing; set {missing[0]}=...")
    settings = OmegaConf.to_container(config.data, resolve=True)
    assert isinstance(settings, dict)
    raw = settings.pop("raw", None)
    return {str(k): v for k, v in settings.items()}, raw


def _digest(settings: dict[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
