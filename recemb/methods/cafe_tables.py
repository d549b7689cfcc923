"""CAFE's tables: rows of their own for the ids that matter, which change while tables train.

Shapes: `n` ids.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from recemb.methods.cafe_layout import CafeLayout, Pool
from recemb.methods.hot_sketch import HotSketch, SketchRules
from recemb.methods.watched_tables import Seen, WatchedTables, sum_by_id
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.program import run_program
from recemb.tables.storage import Storage

Importance = Literal["gradient", "frequency"]


class CafeTables(WatchedTables):
    """Tables of a `CafeLayout` with a sketch for each pool.

    Every backward pass adds the importance of the ids it reached to the sketches: the norm of the
    gradient of each one's vectors, scaled so that a pass adds as much as it has examples. Rows move
    in `adapt` alone, to be called after every update, outside of the backward pass. A row that
    becomes hot begins as the shared one, with its optimizer's state; one that no longer is, is
    lost, and its id reads its shared row again.

    Args:
        layout: where rows lie.
        rules: of each pool's sketch, by its name.
        importance: "gradient", or "frequency" for how often an id is looked up.
        optimizer: how rows are updated.
        seed: of the initial weights.
        device: where the tables live.
    """

    def __init__(
        self,
        layout: CafeLayout,
        *,
        rules: Mapping[str, SketchRules],
        importance: Importance,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> None:
        buffers: dict[str, Tensor] = {}
        for pool in layout.pools:
            buffers |= HotSketch.empty(
                pool.name,
                num_rows=pool.num_hot,
                key_dtype=pool.key_dtype,
                rules=rules[pool.name],
            )
        super().__init__(
            layout.specs,
            layout.plan(is_served=False),
            optimizer=optimizer,
            buffers=buffers,
            initial=layout.initial(),
            seed=seed,
            device=device,
        )
        self.layout = layout
        self.importance: Importance = importance
        self.sketches = {
            pool.name: HotSketch(
                self.plan_buffers,
                pool.name,
                num_rows=pool.num_hot,
                num_marks=pool.num_marks,
                seed=pool.seed,
                rules=rules[pool.name],
            )
            for pool in layout.pools
        }

    def observe(self, seen: Seen, num_examples: int) -> None:
        """Add the importance of a pass's ids to the sketches."""
        for pool in self.layout.pools:
            its = [(field, *seen[field.specs]) for field in pool.fields if field.specs in seen]
            if not its:
                continue
            keys = torch.cat([ids + field.first_key for field, ids, _ in its])
            values = torch.cat([norms for _, _, norms in its])
            if self.importance == "frequency":
                values = torch.ones_like(values)
            keys, values = sum_by_id(keys, values)
            if keys.numel():
                scale = num_examples / float(values.sum())
                self.sketches[pool.name].insert(keys, values * scale)

    @torch.no_grad()
    def adapt(self) -> None:
        """Move rows: to the ids that have come to deserve one, from those that no longer do."""
        for pool in self.layout.pools:
            sketch = self.sketches[pool.name]
            sketch.age()
            slots, keys, targets = sketch.candidates()
            if slots.numel():
                self._copy(pool, keys, targets)
                sketch.give(slots, targets)
            sketch.mark()

    def storage(self) -> Storage:
        """Return the bytes of rows and of the lists of ids; training holds the sketches."""
        found = super().storage()
        train = dict(found.train)
        if sketch := train.pop("buffers", 0):
            train["sketch"] = sketch
        serve = {"weights": found.serve["weights"]}
        if index := sum(pool.index_bytes for pool in self.layout.pools):
            serve["index"] = index
        return Storage(full_bytes=found.full_bytes, serve=serve, train=train)

    def freeze(self) -> PlannedTables:
        """Return the same vectors, read through sorted lists of the ids that have rows."""
        buffers: dict[str, Tensor] = {}
        initial = {s.name: self.table(s.name).detach() for s in self.layout.whole}
        for pool in self.layout.pools:
            sketch = self.sketches[pool.name]
            keys, rows = sketch.listed()
            buffers[f"{pool.name}.hot"] = _padded(keys, pool.num_hot)
            if pool.num_marks:
                buffers[f"{pool.name}.marked"] = _padded(sketch.marked(), pool.num_marks)
            for place in range(len(pool.widths)):
                weight = self.table(pool.table(place)).detach()
                served = weight.clone()
                served[: pool.num_hot] = 0
                served[: rows.numel()] = weight[rows]
                initial[pool.table(place)] = served
                if pool.num_second:
                    initial[pool.second(place)] = self.table(pool.second(place)).detach()
        tables = PlannedTables(
            self.specs,
            self.layout.plan(is_served=True),
            bounds=self._bounds.policy,
            buffers=buffers,
            initial=initial,
            device=self._device,
        )
        return tables.without_training()

    def _copy(self, pool: Pool, keys: Tensor, targets: Tensor) -> None:
        """Copy what keys (n,) read, and the state of its first row, to hot rows (n,)."""
        firsts = torch.tensor([field.first_key for field in pool.fields], device=keys.device)
        which = torch.searchsorted(firsts, keys, right=True) - 1
        sources, added = torch.empty_like(keys), torch.full_like(keys, -1)
        for f, field in enumerate(pool.fields):
            its = which == f
            ids = keys[its] - field.first_key
            program = pool.program(field, is_served=False)
            sources[its] = run_program(program, ids, self.plan_buffers)
            if pool.num_second:
                program = pool.second_program(field, is_served=False)
                added[its] = run_program(program, ids, self.plan_buffers)
        for place in range(len(pool.widths)):
            name = pool.table(place)
            self.engine.store_of(name).copy_rows(name, sources, targets)
            if pool.num_second:
                its = added >= 0
                second = self.table(pool.second(place)).detach()
                self.table(name).detach()[targets[its]] += second[added[its]]


def _padded(keys: Tensor, size: int) -> Tensor:
    """Return sorted keys, filled up to `size` with the largest value of their type."""
    filler = keys.new_full((size - keys.numel(),), torch.iinfo(keys.dtype).max)
    return torch.cat([keys, filler])
