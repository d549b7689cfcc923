"""Raw files to a prepared set, out of core.

Two passes over the source: the first counts the values of the training split for vocabularies and
standardisation (skipped if nothing needs it), the second encodes and writes. Both stream: a few
threads parse and encode a block each while the main thread writes, so memory is

    (num_threads + 2) blocks, about ten times their text each       (16 MiB of text by default)
    + at most 64 bytes per distinct value of all vocabulary features
    + 8 bytes per id for the counts,

well under 2 GB for the Criteo Kaggle set with four threads. Sets with more distinct values than
that allows are hashed, which needs no first pass at all.

A data set is a description on top of this: a `Source` (files), `Columns` (features), a `Split`.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from recemb.data.check import checked
from recemb.data.column import Columns, Kind
from recemb.data.encoded import EncodedRows
from recemb.data.encoder import RowEncoder, Statistics, gather
from recemb.data.manifest import SPLITS
from recemb.data.prefetch import ordered_map
from recemb.data.preparation import prepare_once
from recemb.data.prepared import Prepared
from recemb.data.source import Block, Chunk, OnBadLine, Source
from recemb.data.split import LEFT_OUT, Split
from recemb.data.writer import Writer

_LOG = logging.getLogger(__name__)
_MAX_THREADS = 4

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a data set is made of.

    Attributes:
        name: the data set's name.
        source: the raw files.
        columns: the features.
        split: which rows are for what.
        on_bad_line: "raise" at the first bad line, or "skip" bad lines, counting them by reason.
        seed: of hashed features.
        num_threads: threads that parse and encode; None is one per core, at most four.
    """

    name: str
    source: Source
    columns: Columns
    split: Split
    on_bad_line: OnBadLine = "raise"
    seed: int = 0
    num_threads: int | None = None

    def __post_init__(self) -> None:
        if self.on_bad_line not in ("raise", "skip"):
            raise ValueError(
                f"data '{self.name}': on_bad_line must be 'raise' or 'skip', "
                f"got '{self.on_bad_line}'"
            )

    def settings(self) -> dict[str, Any]:
        """Return all that the prepared set depends on besides the files; plain JSON types."""
        return {
            "source": self.source.settings(),
            "columns": self.columns.to_dict(),
            "split": self.split.settings(),
            "on_bad_line": self.on_bad_line,
            "seed": self.seed,
        }


def prepare(description: Description, out: Path, *, overwrite: bool = False) -> Prepared:
    """Return the prepared set in `out`, preparing it if needed.

    Raises:
        FileNotFoundError: if a raw file does not exist.
        ValueError: on bad input, or if `out` was prepared otherwise; see `prepare_once`.
    """
    rule = description.source.derivation
    return prepare_once(
        out,
        name=description.name,
        settings=description.settings(),
        sources=(*description.source.files, *(rule.files if rule else ())),
        write=_Preparation(description).write,
        overwrite=overwrite,
    )


class _Preparation:
    """The two passes."""

    def __init__(self, description: Description) -> None:
        self._of = description
        split_kinds: Mapping[str, Kind] = description.split.kinds()
        self._kinds = {**split_kinds, **description.columns.kinds()}
        self._num_threads = description.num_threads or min(_MAX_THREADS, os.cpu_count() or 1)

    def write(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write the whole set into `folder`."""
        self._of.split.fit(self._of.source, self._of.on_bad_line)
        statistics = Statistics(self._of.columns)
        if not statistics.is_empty:
            for found in self._each("counting values", self._gather):
                statistics.merge(found)
        encoder = RowEncoder.fitted(self._of.columns, statistics, self._of.seed)
        del statistics
        self._encode(folder, facts, encoder)

    def _encode(self, folder: Path, facts: Mapping[str, Any], encoder: RowEncoder) -> None:
        skipped, num_left_out = Counter[str](), 0
        encoders = folder / "encoders"
        encoders.mkdir()
        with Writer(folder, encoder.schema) as writer:
            for part in self._each("encoding", lambda b: self._encode_block(b, encoder)):
                skipped += part.num_skipped
                num_left_out += part.num_left_out
                for split, rows in part.rows.items():
                    writer.append(split, rows)
            if not writer.num_rows("train"):
                raise ValueError(
                    f"data '{self._of.name}': no row is left for training "
                    f"({skipped.total()} bad lines, {num_left_out} in no split); "
                    "check the split and the files"
                )
            writer.finish(
                {
                    **facts,
                    "encoder": encoder.save(encoders),
                    "bad_lines": dict(skipped),
                    "left_out_rows": num_left_out,
                }
            )
        if skipped:
            reasons = "; ".join(f"{n} x {reason}" for reason, n in skipped.most_common())
            _LOG.warning(
                "data '%s': left out %d bad lines: %s", self._of.name, skipped.total(), reasons
            )

    def _gather(self, block: Block) -> Statistics:
        chunk = self._chunk(block)
        chunk = chunk.keep(self._of.split.assign(chunk) == SPLITS.index("train"))
        return gather(self._of.columns, chunk.table)

    def _encode_block(self, block: Block, encoder: RowEncoder) -> "_EncodedBlock":
        chunk = self._chunk(block)
        codes = self._of.split.assign(chunk)
        rows = {}
        for code, split in enumerate(SPLITS):
            mask = codes == code
            if mask.any():
                rows[split] = encoder.encode(chunk.keep(mask).table)
        return _EncodedBlock(rows, chunk.num_skipped, int(np.count_nonzero(codes == LEFT_OUT)))

    def _chunk(self, block: Block) -> Chunk:
        chunk = self._of.source.chunk(block, self._kinds, self._of.on_bad_line)
        return checked(chunk, self._of.columns, self._of.on_bad_line)

    def _each(self, doing: str, work: Callable[[Block], T]) -> Iterator[T]:
        """Yield `work(block)` for each block in order, showing how far it is."""
        with tqdm(
            total=self._of.source.total_bytes(),
            desc=f"{self._of.name}: {doing}",
            unit="B",
            unit_scale=True,
            mininterval=0.5,
        ) as bar:
            blocks = self._of.source.blocks(self._of.source.raw_kinds(self._kinds))
            results = ordered_map(lambda b: (work(b), b.num_bytes), blocks, self._num_threads)
            for result, num_bytes in results:
                bar.update(num_bytes)
                yield result


@dataclass(frozen=True)
class _EncodedBlock:
    rows: Mapping[str, EncodedRows]
    num_skipped: Counter[str]
    num_left_out: int
