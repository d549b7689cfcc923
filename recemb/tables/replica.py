"""The update of tables of which every rank holds a copy.

Shapes: `U` rows that a rank touched, `D` embedding_dim.
"""

from collections.abc import Sequence

import torch
from torch import distributed as dist

from recemb.tables.gathered import gathered
from recemb.tables.lookup import Lookups
from recemb.tables.store import GroupStore
from recemb.tables.updater import Part, Updater, merge


class ReplicaUpdater:
    """Sums the gradients of all ranks before each of them applies the same update.

    Ranks exchange the rows that they touched, not whole tables; all see them in the same order, so
    that their copies stay equal bit by bit.

    Args:
        updater: of this rank's copy.
        process_group: the ranks.
    """

    def __init__(self, updater: Updater, process_group: dist.ProcessGroup) -> None:
        self.updater = updater
        self._group = process_group
        self._collected: list[Part] = []

    @property
    def store(self) -> GroupStore:
        """Return this rank's copy."""
        return self.updater.store

    @property
    def has_collected(self) -> bool:
        """Return whether gradients wait for the next update."""
        return bool(self._collected)

    def add(self, parts: Sequence[Part]) -> None:
        """Apply, or collect, the parts of one backward pass; collective when it applies."""
        self._collected.extend(parts)
        if self.updater.is_deferring:
            return
        parts, self._collected = self._collected, []
        grad = parts[0].grad if len(parts) == 1 else torch.cat([p.grad for p in parts])
        touched = merge([part.lookups for part in parts])
        summed = touched.gradient(grad, 0, touched.rows.numel())
        rows = gathered(touched.rows, self._group)
        lookups = Lookups(
            rows=rows,
            offsets=None,
            lengths=None,
            scales=None,
            num_slots=1,
            num_outputs=rows.numel(),
            sizes=(rows.numel(),),
        )
        self.updater.add([Part(lookups=lookups, grad=gathered(summed, self._group))])
