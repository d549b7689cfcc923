"""Checkpoints that are written while training goes on."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from recemb.checkpoint.plain_tree import Leaf, join, split
from recemb.checkpoint.store import CheckpointName, Checkpoints, Entry
from recemb.tables.tensor_chunks import Chunk, TensorChunks


class BackgroundCheckpoints(Checkpoints):
    """Checkpoints that a thread writes from a copy of the state.

    A save returns when the copy is made. One save is under way at a time: the next waits for it,
    and raises what went wrong with it. Reading and removing wait, too. A process that is killed
    meanwhile leaves the checkpoints before.

    The copy takes as many bytes as the state, and is kept for the next save.

    Args:
        store: writes. If several processes share it, its process group is nobody else's.
    """

    def __init__(self, store: Checkpoints) -> None:
        self.folder = store.folder
        self._store = store
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._copies: dict[str, Leaf] = {}

    def save(self, name: CheckpointName, state: Mapping[str, Any]) -> None:
        """Copy `state` and write it in the background; see `Checkpoints`."""
        self.save_all([(name, state)], superseded=lambda _: ())

    def save_all(
        self,
        entries: Sequence[Entry],
        *,
        superseded: Callable[[Checkpoints], Sequence[CheckpointName]],
    ) -> None:
        """Copy the states and write them in the background; see `Checkpoints`.

        A tensor that several of them hold is copied once.
        """
        self.finish()
        whole = {str(place): dict(state) for place, (_, state) in enumerate(entries)}
        plain, tensors = split(whole)
        # Each memory is used once, whichever names shared it before.
        free = {id(copy): copy for copy in self._copies.values()}
        copies: dict[int, Leaf] = {}
        for name, leaf in tensors.items():
            if id(leaf) not in copies:
                memory = free.pop(id(self._copies.get(name)), None)
                copies[id(leaf)] = _copied(leaf, memory)
        self._copies = {name: copies[id(leaf)] for name, leaf in tensors.items()}
        states = join(plain, self._copies)
        copied = [(name, states[str(place)]) for place, (name, _) in enumerate(entries)]
        self._pending = self._writer.submit(self._store.save_all, copied, superseded=superseded)

    def names(self, kind: str) -> list[CheckpointName]:
        """Return the checkpoints of a kind, oldest first."""
        self.finish()
        return self._store.names(kind)

    def load(self, name: CheckpointName) -> dict[str, Any]:
        """Return the state of one checkpoint; see `Checkpoints`."""
        self.finish()
        return self._store.load(name)

    def load_newest(self, kind: str) -> tuple[CheckpointName, dict[str, Any]] | None:
        """Return the newest checkpoint of a kind that verifies; see `Checkpoints`."""
        self.finish()
        return self._store.load_newest(kind)

    def remove(self, name: CheckpointName) -> None:
        """Remove one checkpoint."""
        self.finish()
        self._store.remove(name)

    def finish(self) -> None:
        """Return when everything is written.

        Raises:
            OSError: if it could not be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _copied(leaf: Leaf, before: Leaf | None) -> Leaf:
    """Return a copy on the CPU, in the memory of the copy before where it fits."""
    if isinstance(leaf, Tensor):
        return _copied_tensor(leaf, before if isinstance(before, Tensor) else None)
    old = before.chunks if isinstance(before, TensorChunks) else ()
    memory = {chunk.offsets: chunk.values for chunk in old}
    chunks = [
        Chunk(chunk.offsets, _copied_tensor(chunk.values, memory.get(chunk.offsets)))
        for chunk in leaf.chunks
    ]
    return TensorChunks(leaf.shape, leaf.dtype, chunks)


def _copied_tensor(tensor: Tensor, memory: Tensor | None) -> Tensor:
    if type(tensor) not in (Tensor, nn.Parameter):
        # Shards under one name (DTensor, ShardedTensor), which know how to copy themselves.
        return tensor.detach().clone(memory_format=torch.preserve_format)
    fits = memory is not None and memory.shape == tensor.shape and memory.dtype == tensor.dtype
    if memory is None or not fits:
        memory = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return memory.copy_(tensor.detach())
