"""What a fit saves: states to resume from, and the best weights.

A state is written with what it belongs to, and only if its weights are finite.
"""

import functools
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recemb.checkpoint.logical import check_identity
from recemb.checkpoint.plain_tree import Leaf, leaves
from recemb.checkpoint.store import CheckpointName, Checkpoints
from recemb.tables.tensor_chunks import TensorChunks
from recemb.train.ranks import Ranks

RESUME, BEST = "step", "best"
_WEIGHTS = ("tables", "model")
_ROWS = "tables.embedding_bags."


class SavedStates:
    """The checkpoints of a fit.

    Args:
        store: where they go.
        identity: what states belong to, plain JSON types; others are refused.
        keep: how many states to resume from are kept.

    Attributes:
        newest_step: the update after which the newest state was saved or found; None before.
    """

    def __init__(self, store: Checkpoints, *, identity: Mapping[str, Any], keep: int) -> None:
        self.newest_step: int | None = None
        self._store = store
        self._identity = identity
        self._keep = keep

    def save(self, step: int, state: Mapping[str, Any], *, is_best: bool) -> None:
        """Write a state, and its weights as the best ones if they are.

        Raises:
            FloatingPointError: if a weight is not finite; nothing is written.
            OSError: if the disk is full or not writable, now or in a save before this one that went
                on in the background.
        """
        weights = {part: state[part] for part in _WEIGHTS}
        self._check_finite(step, weights)
        entries = [(CheckpointName(RESUME, step), {**state, "identity": self._identity})]
        if is_best:
            best = {**weights, "identity": self._identity}
            # First, for a state to resume from names the best one.
            entries.insert(0, (CheckpointName(BEST, step), best))
        self._store.save_all(entries, superseded=functools.partial(self._superseded, step))
        self.newest_step = step

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Return the step and the state of the newest checkpoint that verifies; None before any.

        Raises:
            OtherTablesError: if it was written by other tables, or another model or method.
            ValueError: if there are checkpoints, and all are damaged.
        """
        found = self._store.load_newest(RESUME)
        if found is None:
            if self._store.names(RESUME):
                raise ValueError(
                    f"every checkpoint in {self._store.folder} is damaged; to begin afresh, remove "
                    "that folder and run the same command"
                )
            return None
        name, state = found
        self._check(name, state)
        self.newest_step = name.step
        return name.step, state

    def best(self, step: int) -> dict[str, Any]:
        """Return the best weights, those after update `step`.

        Raises:
            ValueError: if they are missing or damaged, or written by others.
        """
        name = CheckpointName(BEST, step)
        try:
            state = self._store.load(name)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"the best weights cannot be read: {error}. To train this stage again, remove "
                f"{self._store.folder} and run the same command"
            ) from error
        self._check(name, state)
        return state

    def way_out(self) -> str:
        """Return what is left of a fit whose numbers are not finite any more, and what to try."""
        kept = "no checkpoint had been written"
        if self.newest_step is not None:
            name = CheckpointName(RESUME, self.newest_step)
            kept = f"the last good checkpoint, {self._store.folder / str(name)}, is kept"
        return f"{kept}. Lower the learning rates or set trainer.max_gradient_norm=1"

    def finish(self) -> None:
        """Return when everything is written.

        Raises:
            OSError: if it could not be.
        """
        self._store.finish()

    def _check(self, name: CheckpointName, state: Mapping[str, Any]) -> None:
        owner = f"checkpoint {self._store.folder / str(name)}"
        check_identity(state.get("identity"), self._identity, owner=owner)

    def _superseded(self, step: int, store: Checkpoints) -> Sequence[CheckpointName]:
        """Return what is not needed once the state after update `step` is saved.

        Those are the states beyond the ones to keep, and the best weights that none of these names.
        What is newer was passed over as damaged, or belongs to a course that was not resumed.
        """
        resumes, bests = store.names(RESUME), store.names(BEST)
        kept = [name for name in resumes if name.step <= step][-self._keep :]
        first = kept[0].step
        needed = [best for best in bests if best.step <= first][-1:]
        needed += [best for best in bests if first < best.step <= step]
        return [name for name in (*resumes, *bests) if name not in (*kept, *needed)]

    def _check_finite(self, step: int, weights: Mapping[str, Any]) -> None:
        """Check all of the tables and the model but the state of the rows' optimizer.

        Raises:
            FloatingPointError: on every rank, naming the first that is not finite on any.
        """
        found = leaves(weights)
        counted = (name for name in found if not _is_optimizer_state(name, found))
        mine = next((name for name in counted if _is_bad(found[name])), None)
        for name in Ranks.current().everyone(mine):
            if name is not None:
                raise FloatingPointError(
                    f"{name.removeprefix(_ROWS).removeprefix('tables.')} is not finite after "
                    f"update {step}, which was not saved; {self.way_out()}"
                )


def _is_optimizer_state(name: str, names: Container[str]) -> bool:
    """Return whether a name is `<path>.optimizer.<table>.<part>`, beside rows of that table.

    Tables, and parts of tables, may be called anything, "optimizer" too.
    """
    *path, _ = name.split(".")
    return any(
        word == "optimizer"
        and ".".join([*path[:place], "embedding_bags", *path[place + 1 :], "weight"]) in names
        for place, word in enumerate(path)
    )


def _is_bad(leaf: Leaf) -> bool:
    """Return whether a value of a tensor is not finite."""
    parts = [c.values for c in leaf.chunks] if isinstance(leaf, TensorChunks) else [leaf]
    return not all(_is_finite(part) for part in parts)


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # One pass without a mask as large as the tensor; NaN is carried along.
    low, high = torch.aminmax(tensor.detach())
    return bool(low.isfinite() and high.isfinite())
