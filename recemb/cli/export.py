"""`recemb export`: a finished run as one file for serving."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from recemb.checkpoint.archive import DESCRIPTION
from recemb.checkpoint.export import export, servable_from
from recemb.checkpoint.post_training import quantise_tables
from recemb.cli.failure import user_errors
from recemb.cli.finished import finished_run
from recemb.cli.overrides import LEAVE_NO_FILES
from recemb.cli.train import model_options_of
from recemb.train.summary import versions

_FACTS = ("metrics", "ratio", "seed", "config_hash", "epochs", "best_step")


def run(arguments: list[str]) -> int:
    """Run the verb; return the exit status."""
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
    ended = finished_run(Path(config.run), cache=config.cache, trusted=config.trust_targets)
    trained_bytes = ended.tables.storage().serve_bytes
    tables = quantise_tables(ended.tables, config.post)
    facts = {key: ended.summary.get(key) for key in _FACTS} | {
        "method": OmegaConf.to_container(ended.config.embedding),
        "data": {"name": ended.prepared.manifest["name"]},
        "train_bytes": ended.summary["bytes"]["train"],
        "post": {"form": config.post, "serve_bytes_before": trained_bytes},
        "versions": {"training": ended.summary["versions"], "export": versions()},
    }
    servable = servable_from(
        ended.prepared,
        tables=tables,
        model=ended.model,
        model_settings=model_options_of(ended.config),
        facts=facts,
    )
    return export(servable, Path(config.out))
