"""A prepared data set: memory-mapped columns, and batches of them."""

import hashlib
import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recemb.data.assembly import SplitColumns
from recemb.data.batch import Batch
from recemb.data.behaviours import Behaviours
from recemb.data.manifest import MANIFEST_NAME, SPLITS, read_manifest, sha256
from recemb.data.order import RowOrder, Shares
from recemb.data.prefetch import prefetch as run_ahead
from recemb.data.schema import Schema


class Prepared:
    """A complete prepared set on disk.

    Columns stay on disk: a batch reads its rows through memory maps, so the process's own memory
    does not grow with the number of rows.

    Attributes:
        folder: where it lies.
        schema: its columns.
        manifest: its manifest, plain JSON types; see `recemb.data.manifest`.
        reference: the best reachable metrics ("val/auc", "test/logloss", ...), known only for
            planted data; otherwise empty.
        splits: those of "train", "val", "test" that it has.

    Args:
        folder: a folder that a data set's `prepare` wrote.

    Raises:
        FileNotFoundError: if there is no complete prepared set in `folder`.
        ValueError: if a file of it is missing or has the wrong size, or its format is unknown.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = read_manifest(self.folder)
        self.schema = Schema.from_dict(self.manifest["schema"])
        self.reference: Mapping[str, float] = dict(self.manifest.get("reference", {}))
        self.splits: tuple[str, ...] = tuple(s for s in SPLITS if s in self.manifest["rows"])
        self._check_sizes()
        self._columns: dict[str, SplitColumns] = {}
        self._behaviours = Behaviours.stored(self.folder / "behaviours", self.schema)

    @property
    def digest(self) -> str:
        """Return what names the content: the columns, the vocabularies and the splits."""
        content = {"files": self.manifest["files"], "rows": self.manifest["rows"]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def num_rows(self, split: str) -> int:
        """Return the number of examples of `split`.

        Raises:
            ValueError: if there is no such split.
        """
        if split not in self.splits:
            raise ValueError(
                f"prepared data: {self.folder} has no split '{split}'; it has {list(self.splits)}"
            )
        return int(self.manifest["rows"][split])

    def num_batches(
        self,
        split: str,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> int:
        """Return how many batches `batches` yields from the first on; equal for all ranks."""
        return Shares(
            self.num_rows(split),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        ).num_steps

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
        drop_last: bool = False,
        prefetch: int = 2,
    ) -> Generator[Batch]:
        """Yield the batches of one epoch of `split`.

        The order is a pure function of the number of rows, `seed`, `epoch` and `shuffle`; see
        `recemb.data.order` for the shuffle of large sets. Lengths and offsets of one-hot features
        are shared between batches: do not change them in place.

        Args:
            split: "train", "val" or "test".
            batch_size: examples of a step, over all ranks; the last may be smaller, see `Shares`.
            seed: of the shuffle.
            epoch: of the shuffle.
            shuffle: whether to permute the rows.
            rank: which share of the rows to yield.
            world_size: number of shares; they are disjoint and have equally many batches.
            first_batch: where to begin: batches before it are neither read nor counted again.
            drop_last: whether to leave out a last, smaller batch.
            prefetch: batches made ahead by a background thread, which ends with the generator.

        Raises:
            ValueError: on an unknown split or an argument out of range; at once, not at the first
                batch.
        """
        num_rows = self.num_rows(split)
        shares = Shares(
            num_rows, batch_size=batch_size, rank=rank, world_size=world_size, drop_last=drop_last
        )
        order = RowOrder(num_rows, seed=seed, epoch=epoch, shuffle=shuffle)
        if not 0 <= first_batch <= shares.num_steps:
            raise ValueError(
                f"batches: first_batch must be in [0, {shares.num_steps}], got {first_batch}"
            )
        return run_ahead(self._assemble(split, order, shares, first_batch), prefetch)

    def id_counts(self, feature: str) -> Tensor:
        """Return how often the training split has each id, (num_embeddings,) int64.

        Raises:
            ValueError: if there is no such feature.
        """
        if feature not in self.schema.feature_names:
            raise ValueError(
                f"prepared data: {self.folder} has no feature '{feature}'; "
                f"it has {list(self.schema.feature_names)}"
            )
        index = self.schema.feature_names.index(feature)
        return torch.from_numpy(np.fromfile(self.folder / "counts" / f"{index}.i64", "<i8"))

    def verify(self) -> None:
        """Read every file and compare its checksum with the manifest's.

        Raises:
            ValueError: naming the first file that differs.
        """
        for name, entry in self.manifest["files"].items():
            if sha256(self.folder / name) != entry["sha256"]:
                raise ValueError(
                    f"prepared data: {self.folder / name} has changed since it was written "
                    "(its checksum differs); delete the folder and prepare again"
                )

    def _assemble(
        self, split: str, order: RowOrder, shares: Shares, first_batch: int
    ) -> Generator[Batch]:
        columns = self._split_columns(split)
        for step in range(first_batch, shares.num_steps):
            start, stop = shares.bounds(step)
            yield columns.batch(order.rows(start, stop) if order.shuffle else slice(start, stop))

    def _split_columns(self, split: str) -> SplitColumns:
        if split not in self._columns:
            self._columns[split] = SplitColumns(
                self.folder / split, self.schema, self.num_rows(split), self._behaviours
            )
        return self._columns[split]

    def _check_sizes(self) -> None:
        for name, entry in self.manifest["files"].items():
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != entry["bytes"]:
                what = "is missing" if found is None else f"has {found} bytes"
                raise ValueError(
                    f"prepared data: {path} {what}, but {MANIFEST_NAME} says {entry['bytes']} "
                    "bytes; delete the folder and prepare again"
                )
