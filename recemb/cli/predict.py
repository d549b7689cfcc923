"""`recemb predict`: raw rows to the same rows with a last column `probability`."""

import sys
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from recemb.checkpoint.export import load
from recemb.checkpoint.scoring import ScoredFile
from recemb.cli.failure import user_errors
from recemb.cli.overrides import LEAVE_NO_FILES, predict_words


def run(arguments: list[str]) -> int:
    """Run the verb; return the exit status."""
    sys.argv = ["recemb predict", *predict_words(arguments), *LEAVE_NO_FILES]
    hydra.main(config_path="pkg://recemb.conf", config_name="predict", version_base="1.3")(main)()
    return 0


def main(config: DictConfig) -> None:
    """Score the file and print what became of it."""
    with user_errors("predict", traceback=config.traceback):
        for key, word in (("file", "model"), ("in", "in"), ("out", "out")):
            if OmegaConf.is_missing(config, key):
                raise ValueError(
                    f"{word} is missing; write recemb predict model=FILE in=FILE out=FILE"
                )
        scored = predict(config)
    print(f"scored   {scored.num_rows - scored.num_bad:,} rows into {config.out}")
    if scored.num_bad:
        print(f"skipped  {scored.num_bad:,} rows that do not fit; their probability is empty")
    for feature, num_unseen in scored.num_unseen.items():
        num_values = scored.num_values[feature]
        if num_values and num_unseen == num_values:
            print(
                f"warning: none of the {num_values:,} values of '{feature}' is known from training",
                file=sys.stderr,
            )


def predict(config: DictConfig) -> ScoredFile:
    """Score the configured file.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if the model is damaged, or the rows do not fit it.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    model = load(Path(config.file))
    source = Path(config["in"])
    total = source.stat().st_size if source.is_file() else 0
    with tqdm(total=total, unit="B", unit_scale=True, disable=not config.progress) as bar:
        return model.predict_file(
            source,
            Path(config.out),
            batch_size=config.batch_size,
            on_bad_line=config.on_bad_line,
            text={str(k): _plain(v) for k, v in config.text.items()},
            advance=bar.update,
        )


def _plain(value: object) -> object:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
