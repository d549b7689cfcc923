"""CAFE: the ids that matter most have rows of their own, found while training; others share rows.

    e(i) = H[row(i)] if i is hot, else E_f[h_f(i)]

A sketch (`HotSketch`) keeps the ids whose vectors get the largest gradients. An id whose score
reaches the threshold gets a hot row, which begins as its shared one; scores decay, and ids that
fall below the threshold share again. CAFE+ (`CafePlus`) lets the threshold find itself, weighs what
is recent more, and lets ids in the middle add a second hashed row, `E_f[h_f(i)] + M[h'_f(i)]`.

Source: Zhang et al., "CAFE: Towards Compact, Adaptive, and Fast Embedding for Large-scale
Recommendation Models", SIGMOD 2024, arXiv 2312.03256, and the authors' code; Zhang et al., CAFE+,
TOIS 2025. Departures: hot rows of all fields are one pool, as in the authors' code, but an id's
first-order weight moves with its vector; a batch feeds the sketch at once, see `HotSketch`; the
threshold follows from the data, and is lower than the authors'; CAFE+ has no filter before its
sketch, and its second row is the multi-level variant of the first paper. In serving, hot ids are a
sorted list, and the sketch is gone.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, get_args

import torch

from recemb.data.batch import Batch
from recemb.ids.hashing import hash_seed as seed_of
from recemb.methods.cafe_layout import SLOT_BYTES, CafeLayout, Field, Pool
from recemb.methods.cafe_tables import CafeTables, Importance
from recemb.methods.computed import largest_size
from recemb.methods.hot_sketch import NUM_SLOTS, SketchRules
from recemb.methods.watched_tables import fields_of
from recemb.tables.method import Budget, Context, IdCounts, Method, Plan, built_for
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.recipe import Recipe, Updates
from recemb.tables.spec import TableSpec, refuse_any_id

_STEPS = 1 << 20
"""Rows are one in so many steps of a field's ids."""

_EVEN_SHARE = 1 / 40
"""The threshold where none is given, over the importance of an epoch for each hot row."""

_Rates = tuple[tuple[float, float], ...]
_HASH_RATES: _Rates = ((0.2, 0.7), (0.02, 0.5), (0.005, 0.3), (0.0005, 0.2), (0.0, 0.1))
"""The share of rows that is shared, above a ratio: the authors' settings."""

_HASH_RATES_PLUS: _Rates = ((0.01, 0.7), (0.0003, 0.3), (0.0, 0.2))
"""Likewise of CAFE+, whose authors give 0.7 at 0.1, 0.3 at 0.001 and 0.2 at 0.0001."""


class Cafe(Method):
    """Hot rows and shared rows in a share that follows the ratio.

    A budget is exact but for a row. One of serving counts the list of hot ids, 4 bytes each; one of
    training the sketch, 48 bytes for each hot row, as the paper does. Hot rows that no id has got
    by the end of training still count.

    Args:
        hash_rate: share of the rows that is shared; None for the authors' setting for the ratio.
        threshold: score that makes an id hot, where every example adds 1 to all scores; None for a
            fortieth of what each hot row would have if they shared one epoch's importance evenly.
            The authors' settings on Criteo, 10 to 500 by ratio, are about half of it, which makes
            most ids wait until late in the first epoch.
        decay: factor of all scores, once their sum is above 10 thresholds for each hot row.
        importance: "gradient", or "frequency" for how often an id occurs.
        exact_below: tables of at most so many ids are not compressed; None for 2000 times the
            ratio, as in the authors' code.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions.

    Raises:
        ValueError: on an unknown word or a number out of its range.
    """

    hash_rates: ClassVar[_Rates] = _HASH_RATES
    why_unshared = "one sketch of all ids decides which rows move after every update"

    def __init__(
        self,
        *,
        hash_rate: float | None = None,
        threshold: float | None = None,
        decay: float = 0.99,
        importance: Importance = "gradient",
        exact_below: int | None = None,
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        if hash_rate is not None and not 0 < hash_rate < 1:
            raise ValueError(f"CAFE: hash_rate must be in (0, 1) or null, got {hash_rate}")
        if importance not in get_args(Importance):
            raise ValueError(f"CAFE: importance must be gradient or frequency, got '{importance}'")
        # Checks threshold and decay.
        self._rules = SketchRules(threshold=1.0 if threshold is None else threshold, decay=decay)
        self.hash_rate = hash_rate
        self.threshold = threshold
        self.importance: Importance = importance
        self.exact_below = exact_below
        self.init_std = init_std
        self.hash_seed = hash_seed
        self.second_rate = 0.0

    def layout(self, specs: Sequence[TableSpec], budget: Budget | None) -> CafeLayout:
        """Return the largest layout within `budget`; the smallest there is if none fits it."""
        of_train = budget is not None and budget.of == "train"

        def num_bytes(size: int) -> int:
            made = self._of_size(specs, budget, size)
            return made.train_bytes if of_train else made.serve_bytes

        size = largest_size(num_bytes, budget, specs, most=_STEPS)
        return self._of_size(specs, budget, size)

    def rules(self, pool: Pool, stats: IdCounts) -> SketchRules:
        """Return how the sketch of a pool gives rows out."""
        threshold = self.threshold
        if threshold is None:
            threshold = max(1.0, _EVEN_SHARE * _num_examples(stats) / pool.num_hot)
        return SketchRules(threshold=threshold, decay=self._rules.decay)

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return what `build` would make, allocating no table; see `Method`."""
        refuse_any_id(specs, type(self).__name__)
        made = self.layout(specs, budget)
        tables = self._tables(made, stats, optimizer=None, seed=0, device=torch.device("meta"))
        storage = tables.storage()
        parameters = {
            "hot_rows": {pool.name: pool.num_hot for pool in made.pools},
            "shared_rows": {
                field.specs[0].name: field.num_shared for p in made.pools for field in p.fields
            },
            "threshold": {p.name: self.rules(p, stats).threshold for p in made.pools},
        }
        return Plan.of(storage, specs, budget, parameters)

    def build(
        self,
        specs: Sequence[TableSpec],
        stats: IdCounts,
        budget: Budget | None,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> CafeTables:
        """Return untrained tables without a hot id; see `Method`.

        Raises:
            ValueError: if the budget is below the smallest size.
        """
        self.feasible_plan(specs, stats, budget)
        made = self.layout(specs, budget)
        return self._tables(made, stats, optimizer=optimizer, seed=seed, device=device)

    def run(self, ctx: Context) -> PlannedTables:
        """Return tables whose rows moved after every update."""
        tables = built_for(ctx, self.build)

        def step(updates: Updates, batches: Sequence[Batch]) -> float:
            loss = updates.update(batches)
            tables.adapt()
            return loss

        ctx.fit(tables, stage="train", recipe=Recipe(step=step))
        return tables

    def _tables(
        self,
        layout: CafeLayout,
        stats: IdCounts,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> CafeTables:
        return CafeTables(
            layout,
            rules={pool.name: self.rules(pool, stats) for pool in layout.pools},
            importance=self.importance,
            optimizer=optimizer,
            seed=seed,
            device=device,
        )

    def _of_size(self, specs: Sequence[TableSpec], budget: Budget | None, size: int) -> CafeLayout:
        """Return the layout of size / _STEPS rows for each id of the fields that are compressed."""
        ratio = 1.0
        if budget is not None:
            ratio = budget.allowed_bytes(specs) / sum(spec.full_bytes for spec in specs)
        below = 2000 * ratio if self.exact_below is None else self.exact_below
        by_shape: dict[tuple[object, ...], list[tuple[TableSpec, ...]]] = {}
        for its in fields_of(specs):
            if its[0].num_embeddings > below:
                widths = tuple(spec.embedding_dim for spec in its)
                by_shape.setdefault((widths, its[0].pooling == "none"), []).append(its)
        is_served = budget is None or budget.of == "serve"
        pools = tuple(
            self._pool(f"pool{number}", fields, ratio, size / _STEPS, is_served)
            for number, fields in enumerate(by_shape.values())
        )
        return CafeLayout(specs=tuple(specs), pools=pools, init_std=self.init_std)

    def _pool(
        self,
        name: str,
        members: Sequence[tuple[TableSpec, ...]],
        ratio: float,
        rate: float,
        is_served: bool,
    ) -> Pool:
        """Return a pool with `rate` rows for each id, so that hot ids pay for their index."""
        hash_rate = self.hash_rate
        if hash_rate is None:
            hash_rate = next(its for above, its in self.hash_rates if ratio > above)
        widths = tuple(spec.embedding_dim for spec in members[0])
        num_ids = sum(its[0].num_embeddings for its in members)
        row_bytes = 4 * sum(widths)
        index_bytes = 4 if is_served else NUM_SLOTS * (4 + SLOT_BYTES)
        hot = num_ids * rate * (1 - hash_rate) * row_bytes / (row_bytes + index_bytes)
        num_hot = max(1, int(hot))
        fields, first_key, first_row = [], 0, num_hot
        for its in members:
            shared = its[0].num_embeddings * rate * hash_rate * (1 - self.second_rate)
            field = Field(
                specs=its,
                first_key=first_key,
                first_row=first_row,
                num_shared=max(1, math.ceil(shared)),
                seed=seed_of(self.hash_seed, its[0].feature_names[0]),
                second_seed=seed_of(self.hash_seed, its[0].feature_names[0], 1),
            )
            fields.append(field)
            first_key += field.num_ids
            first_row += field.num_shared
        second = math.ceil(num_ids * rate * hash_rate * self.second_rate)
        return Pool(
            name=name,
            fields=tuple(fields),
            widths=widths,
            num_hot=num_hot,
            num_second=second,
            seed=seed_of(self.hash_seed, name),
        )


class CafePlus(Cafe):
    """CAFE with a threshold that finds itself, and a second row for ids in the middle.

    The threshold rises to the score of the last id that has room, once 1.2 times as many ids reach
    it as there are hot rows. Ids without a hot row whose score reaches `mark_share` of it add a row
    of a second table, at most as many ids as there are hot rows; their list counts as well.

    Args:
        hash_rate: see `Cafe`.
        second_rate: share of the shared rows that is the second table; 0 for none.
        mark_share: see above.
        threshold: at first.
        growth: factor by which what is added to scores grows from update to update.
        importance: see `Cafe`.
        exact_below: see `Cafe`.
        init_std: see `Cafe`.
        hash_seed: see `Cafe`.

    Raises:
        ValueError: on an unknown word or a number out of its range.
    """

    hash_rates: ClassVar[_Rates] = _HASH_RATES_PLUS

    def __init__(
        self,
        *,
        hash_rate: float | None = None,
        second_rate: float = 0.3,
        mark_share: float = 0.5,
        threshold: float = 1.0,
        growth: float = 1.0000005,
        importance: Importance = "gradient",
        exact_below: int | None = None,
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        super().__init__(
            hash_rate=hash_rate,
            threshold=threshold,
            importance=importance,
            exact_below=exact_below,
            init_std=init_std,
            hash_seed=hash_seed,
        )
        if not 0 <= second_rate < 1:
            raise ValueError(f"CAFE: second_rate must be in [0, 1), got {second_rate}")
        self.second_rate = second_rate
        self._rules = SketchRules(
            threshold=threshold, adapts=True, growth=growth, mark_share=mark_share
        )

    def rules(self, pool: Pool, stats: IdCounts) -> SketchRules:
        """Return how the sketch of a pool gives rows out."""
        return self._rules


def _num_examples(stats: IdCounts) -> float:
    """Return about how many examples the training split has: the median feature's number of ids."""
    totals = sorted(int(counts.sum()) for counts in stats.values())
    return float(totals[len(totals) // 2]) if totals else 0.0
