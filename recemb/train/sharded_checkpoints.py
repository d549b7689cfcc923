"""Checkpoints of a fit, by as many processes as train."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import distributed as dist

from recemb.checkpoint.background import BackgroundCheckpoints
from recemb.checkpoint.sharded_store import ShardedCheckpointStore
from recemb.checkpoint.store import CheckpointName, Checkpoints, CheckpointStore
from recemb.tables.tables import Tables
from recemb.train.ranks import Ranks


class FitCheckpoints(Checkpoints):
    """Checkpoints that all ranks write and read, each its own shards.

    Args:
        store: the checkpoints.
        tables: whose shards a checkpoint is loaded into.
    """

    def __init__(self, store: ShardedCheckpointStore, tables: Tables) -> None:
        self.folder = store.folder
        self._store = store
        self._tables = tables

    def save(self, name: CheckpointName, state: Mapping[str, Any]) -> None:
        """Write `state`; see `Checkpoints`."""
        self._store.save(name, state)

    def names(self, kind: str) -> list[CheckpointName]:
        """Return the checkpoints of a kind, oldest first."""
        return self._store.names(kind)

    def load(self, name: CheckpointName) -> dict[str, Any]:
        """Return the state of one checkpoint, its sharded tensors written into the tables."""
        return self._store.load(name, into=self._wanted())

    def load_newest(self, kind: str) -> tuple[CheckpointName, dict[str, Any]] | None:
        """Return the newest checkpoint of a kind that verifies; see `load`."""
        return self._store.load_newest(kind, into=self._wanted())

    def remove(self, name: CheckpointName) -> None:
        """Remove one checkpoint."""
        self._store.remove(name)

    def finish(self) -> None:
        """Return when everything is written."""
        self._store.finish()

    def _wanted(self) -> dict[str, Any]:
        return {"tables": self._tables.state_dict()}


def checkpoints_of(folder: Path, tables: Tables, *, in_background: bool) -> Checkpoints:
    """Return the checkpoints of a fit of `tables`, which several processes share if there are.

    Args:
        folder: where they lie.
        tables: what is trained.
        in_background: whether they are written while training goes on.
    """
    store: Checkpoints
    ranks = Ranks.current()
    if ranks.world_size == 1:
        store = CheckpointStore(folder)
    else:
        # Messages of a save in the background must not mix with those of training.
        group = dist.new_group(backend="gloo", timeout=ranks.timeout) if in_background else None
        store = FitCheckpoints(ShardedCheckpointStore(folder, group=group), tables)
    return BackgroundCheckpoints(store) if in_background else store
