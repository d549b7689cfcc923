"""A model that scores: frozen tables, model and encoder.

Shapes: `B` examples.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recemb.checkpoint.atomic import whole_file
from recemb.data.batch import Batch
from recemb.data.encoder import RowEncoder
from recemb.data.prefetch import prefetch
from recemb.data.raw_histories import RawHistories
from recemb.data.raw_rows import RawBlock, RawRows
from recemb.data.scored_rows import scored_rows
from recemb.data.source import OnBadLine
from recemb.models.click_model import ClickModel
from recemb.tables.tables import Tables


@dataclass(frozen=True, kw_only=True)
class ScoredFile:
    """What became of a file of raw rows.

    Attributes:
        num_rows: rows that were written.
        num_bad: how many of them could not be scored.
        num_values: how many values each vocabulary feature had.
        num_unseen: how many of those have no id of their own: missing, rare or unseen in training.
    """

    num_rows: int
    num_bad: int
    num_values: Mapping[str, int] = field(default_factory=dict)
    num_unseen: Mapping[str, int] = field(default_factory=dict)


class ScoringModel:
    """Batches, or files of raw rows, to probabilities.

    Attributes:
        tables: frozen.
        model: in eval mode.
        encoder: turns raw values into ids and numbers.
        source: how the training data were read.
        facts: figures of the run that it comes from.
        histories: what becomes of lists of earlier behaviours; None where the model reads none.

    Args:
        tables: frozen, in eval mode, on the CPU.
        model: in eval mode, on the CPU.
        encoder: that of the training data.
        source: settings of the training data's `Source`.
        facts: figures for the reader.
        histories: as the attribute.
    """

    def __init__(
        self,
        *,
        tables: Tables,
        model: ClickModel,
        encoder: RowEncoder,
        source: Mapping[str, Any],
        facts: Mapping[str, Any],
        histories: RawHistories | None = None,
    ) -> None:
        self.tables = tables
        self.model = model
        self.encoder = encoder
        self.source = dict(source)
        self.facts = dict(facts)
        self.histories = histories

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits (B,) float32; the batch's labels are not read.

        Raises:
            ValueError: if a feature is missing, or an id is out of range and `bounds` is "error".
        """
        with torch.inference_mode():
            return self.model.score(batch, self.tables).float()

    def predict(self, batch: Batch) -> Tensor:
        """Return the probabilities (B,) float32 of the label 1; otherwise as `logits`."""
        return torch.sigmoid(self.logits(batch))

    def predict_file(
        self,
        source: Path,
        out: Path,
        *,
        batch_size: int = 16384,
        on_bad_line: OnBadLine = "raise",
        text: Mapping[str, Any] | None = None,
        advance: Callable[[int], object] = lambda num_bytes: None,
    ) -> ScoredFile:
        """Write the rows of a file with a last column `probability`.

        Memory does not grow with the file. What is at `out` is replaced once the new file is whole.

        Args:
            source: raw rows, see `RawRows`.
            out: what to write, in the same format.
            batch_size: rows that are scored together.
            on_bad_line: "raise" at the first row that does not fit, or "skip": write it without a
                probability.
            text: how the file is read where that differs from the training data.
            advance: called with the bytes of each block that is done.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it has not the columns that the model needs, or a row does not fit.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        rows = RawRows(
            source,
            self.encoder,
            trained_on=self.source,
            text=text,
            on_bad_line=on_bad_line,
            histories=self.histories,
        )
        if out.exists() and out.samefile(source):
            raise ValueError(f"out is the input itself, {source}; name another file")
        num_rows, num_bad = 0, 0
        values, unseen = Counter[str](), Counter[str]()
        with whole_file(out) as unfinished, scored_rows(rows, unfinished, out.name) as written:
            for block in prefetch(rows.blocks(), depth=1):
                found = self._score(rows, block, batch_size, (values, unseen))
                num_rows += len(found)
                num_bad += int((~block.is_good).sum())
                written.write(block.block, found)
                advance(block.block.num_bytes)
        return ScoredFile(num_rows=num_rows, num_bad=num_bad, num_values=values, num_unseen=unseen)

    def _score(
        self,
        rows: RawRows,
        block: RawBlock,
        batch_size: int,
        counts: tuple[Counter[str], Counter[str]],
    ) -> NDArray[np.float32]:
        """Return the probability of each row of a block, NaN where there is none."""
        found = np.full(len(block.is_good), np.nan, np.float32)
        parts = []
        for batch in rows.batches(block, batch_size):
            parts.append(self.predict(batch).numpy())
            for name in self.encoder.vocabularies:
                ids = batch.features[name].values()
                counts[0][name] += ids.numel()
                counts[1][name] += int((ids == 0).sum())
        if parts:
            found[block.is_good] = np.concatenate(parts)
        return found
