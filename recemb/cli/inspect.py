"""`recemb inspect`: the health of a finished run's tables, and what its model attends to."""

import csv
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from recemb.checkpoint.atomic import whole_file
from recemb.cli.failure import user_errors
from recemb.cli.finished import FinishedRun, finished_run
from recemb.cli.overrides import LEAVE_NO_FILES, inspect_words
from recemb.data.batch import Batch
from recemb.models.sequence.history_model import HistoryModel
from recemb.models.sequence.part import Part
from recemb.models.sequence.sequence_model import SequenceModel
from recemb.report.health import VectorHealth
from recemb.report.inspection import show_attention, show_features, show_roles, show_tables
from recemb.report.page import Page
from recemb.report.sequence_health import (
    attention_report,
    feature_report,
    mutual_information,
    role_report,
)

_BATCH_SIZE = 4096
_MOST_PLACES = 2**20
"""Places of the histories of a batch: 64 MB for each part of 16 values."""
_CATEGORY = "category"


def run(arguments: list[str]) -> int:
    """Run the verb; return the exit status."""
    sys.argv = ["recemb inspect", *inspect_words(arguments), *LEAVE_NO_FILES]
    hydra.main(config_path="pkg://recemb.conf", config_name="inspect", version_base="1.3")(main)()
    return 0


def main(config: DictConfig) -> None:
    """Print the page and write it."""
    with user_errors("inspect", traceback=config.traceback):
        if OmegaConf.is_missing(config, "run"):
            raise ValueError("run is missing; write recemb inspect RUN")
        page, folder = inspect_run(config)
    print("\n".join(line for line in page.lines if not line.startswith("![")))
    print(f"written to {folder}")


def inspect_run(config: DictConfig) -> tuple[Page, Path]:
    """Return the page on the configured run, and the folder that it was written to.

    Raises:
        ValueError: if the run has not finished.
        FileNotFoundError: if there is no such run, or its prepared data are gone.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    ended = finished_run(Path(config.run), cache=config.cache, trusted=config.trust_targets)
    tables, model, prepared = ended.tables.eval(), ended.model.eval(), ended.prepared
    page = Page()
    page.text(f"# {config.run}")
    by_feature = {f: prepared.id_counts(f) for f in prepared.schema.feature_names}
    found = show_tables(page, tables, by_feature, max_ids=config.max_ids)
    out = Path(config.run) / "inspect" if config.out is None else Path(config.out)
    # What follows may take long, or more memory than there is.
    page.write(out, "inspect.md")
    _write_csv(out / "vectors.csv", found)
    if isinstance(model, SequenceModel):
        _show_sequences(page, ended, model, config)
    elif isinstance(model, HistoryModel):
        page.text(
            "Attention and gradients of the two roles are shown of models that sum a history by "
            f"weights, which {type(model).__name__} does not."
        )
    page.write(out, "inspect.md")
    return page, out


def _show_sequences(
    page: Page, ended: FinishedRun, model: SequenceModel, config: DictConfig
) -> None:
    """Add the analyses of a model of behaviour sequences."""
    tables, prepared = ended.tables, ended.prepared
    size = min(config.batch_size, _batch_size(ended))

    def some() -> Iterator[Batch]:
        batches = prepared.batches("train", batch_size=size, shuffle=True)
        return itertools.islice(batches, config.num_batches)

    columns = [part.target for part in model.parts]
    show_roles(page, [role_report(model, tables, some(), column=column) for column in columns])
    categories = [part for part in model.parts if part.target == _CATEGORY]
    if categories and "test" in prepared.splits:
        _show_attention(page, ended, model, categories[0], config)
    if "test" in prepared.splits:
        show_features(page, feature_report(model, tables, _batches(ended, "test")))


def _show_attention(
    page: Page, ended: FinishedRun, model: SequenceModel, category: Part, config: DictConfig
) -> None:
    prepared = ended.prepared
    truth = mutual_information(
        lambda: _batches(ended, "train"),
        category,
        num_categories=prepared.schema.column(category.target).num_embeddings,
        max_history=prepared.manifest["protocol"]["max_history"],
        min_rows=config.min_rows,
        max_targets=config.max_targets,
    )
    found = attention_report(
        model,
        ended.tables,
        _batches(ended, "test"),
        truth,
        category,
        min_joint=config.min_joint,
        max_rare=config.max_rare,
    )
    show_attention(page, found, min_rows=config.min_rows)


def _batches(ended: FinishedRun, split: str) -> Iterator[Batch]:
    return ended.prepared.batches(split, batch_size=_batch_size(ended))


def _batch_size(ended: FinishedRun) -> int:
    """Return how many examples are looked at together: their histories are whole in memory."""
    longest = int(ended.prepared.manifest["protocol"]["max_history"])
    return max(1, min(_BATCH_SIZE, _MOST_PLACES // longest))


def _write_csv(path: Path, found: Sequence[VectorHealth]) -> None:
    text = io.StringIO()
    names = ("table", "num_ids", "num_seen", "num_sampled", "width", "rank", "num_zero")
    quantiles = ("norm_0", "norm_25", "norm_50", "norm_75", "norm_100")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "share_merged", *quantiles])
    for health in found:
        values = (getattr(health, name) for name in names)
        writer.writerow([*values, health.share_merged, *health.norms])
    with whole_file(path) as unfinished:
        unfinished.write_text(text.getvalue(), encoding="utf-8", newline="")
