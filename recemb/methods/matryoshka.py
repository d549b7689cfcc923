"""Matryoshka: vectors whose first values are vectors, too, so that serving may keep only those.

    train: E[i] * m_p,  p drawn anew in every step;   serve: E[i, :w] and zeros behind

Source: Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022, section 3 (prefixes of
D, D/2, D/4, ..). Departures: they add the losses of all prefixes in every step, with a linear head
for each; here one prefix is drawn per step, each as likely as the others, which is nested dropout
(Rippel, Gelbart and Adams, ICML 2014) and the gradient of the mean of those losses in expectation
only; and one network reads all prefixes, with zeros for what is cut off, so that a model need not
know. The prefix to be served is among those that are drawn, where it is none of theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recemb.ids.hashing import hash_seed
from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.method import Budget, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.spec import TableSpec
from recemb.tables.storage import Storage
from recemb.tables.tables import Share, Tables
from recemb.tables.wrapped import hand_on, name_as_own

_STEP = "matryoshka.step"


class MatryoshkaTables(Tables):
    """Full tables of which a forward pass shows a prefix of every vector.

    In training mode each pass draws the prefix by hashing its number, which is saved, so that a
    resumed run draws what an undisturbed one would have drawn. In evaluation mode it is the served
    one, so that validation scores what is served. Training holds the full tables; `storage` says
    for serving what `freeze` makes.

    Attributes:
        planned: the full tables.
        plan: that of the served tables.
        width: the prefix that is served.
        widths: the prefixes that are drawn.
        levels: the argument.
        seed: the argument.

    Args:
        planned: full tables.
        width: the prefix that is served, in tables that are wider.
        levels: how many prefixes of D, D/2, D/4, .. are trained; each at least one value.
        seed: of the draws.

    Raises:
        ValueError: if `width` or `levels` is below 1.
    """

    def __init__(self, planned: PlannedTables, *, width: int, levels: int, seed: int) -> None:
        super().__init__(planned.specs)
        if width < 1 or levels < 1:
            raise ValueError(
                f"MatryoshkaTables: width and levels must be at least 1, got {width} and {levels}"
            )
        self.planned = planned
        self.width = width
        self.levels = levels
        self.seed = seed
        self.plan = truncated_plan(self.specs, width)
        most = max(spec.embedding_dim for spec in self.specs)
        self.widths = tuple(sorted({width, *(-(-most // (1 << level)) for level in range(levels))}))
        self._step = 0
        name_as_own(self)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return one pooled vector per key and example, contiguous (B, sum of D).

        Raises:
            ValueError: if a feature is missing, or an id is out of range.
        """
        found, width = self.planned(features), self._next_width()
        dims = list(self.embedding_dims.values())
        values = found.values()
        if dims:
            is_cut = torch.cat([torch.arange(dim) >= width for dim in dims])
            values = values.masked_fill(is_cut.to(values.device), 0)
        return KeyedTensor(keys=list(self.keys), length_per_key=dims, values=values)

    def sequences(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Return, for each of `sequence_keys`, the vectors (N, D) of all its ids, not pooled.

        Raises:
            ValueError: as `forward`.
        """
        if not self.sequence_keys:
            return {}
        found, width = self.planned.sequences(features), self._next_width()
        return {
            key: JaggedTensor(
                values=_prefix(its.values(), width),
                lengths=its.lengths(),
                weights=its.weights_or_none(),
            )
            for key, its in found.items()
        }

    def rows(self, key: str, ids: Tensor) -> Tensor:
        """Return the vectors (N, D) of `ids` (N,) as they are served.

        `forward` equals pooling these in evaluation mode.

        Raises:
            ValueError: on an unknown key or an id out of range.
        """
        return _prefix(self.planned.rows(key, ids), self.width)

    def storage(self) -> Storage:
        """Return the exact bytes: of the served prefix, and of the full tables in training."""
        train = self.planned.storage()
        weights = sum(4 * table.num_rows * table.width for table in self.plan.tables)
        return Storage(
            full_bytes=train.full_bytes,
            serve={"weights": weights},
            train={**train.train, "step": 8},
        )

    def truncated(self, width: int) -> PlannedTables:
        """Return serving tables of the first `width` values of every vector, and zeros behind.

        Args:
            width: any; only `widths` were trained.

        Raises:
            ValueError: if it is below 1.
        """
        if width < 1:
            raise ValueError(f"MatryoshkaTables: width must be at least 1, got {width}")
        plan = truncated_plan(self.specs, width)
        full = {table.name: self.planned.table(table.name).detach() for table in plan.tables}
        return PlannedTables(
            self.specs,
            plan,
            initial={table.name: full[table.name][:, : table.width] for table in plan.tables},
            device=next(iter(full.values())).device,
        ).without_training()

    def freeze(self) -> PlannedTables:
        """Return the served tables."""
        return self.truncated(self.width)

    def why_not_sharded(self) -> str | None:
        """Return why several processes cannot share these tables, or None if they can."""
        return self.planned.why_not_sharded()

    def sharded(self, share: Share) -> Tables:
        """Return these tables made anew for one of several ranks; see `Tables`.

        All ranks draw the same prefix, for they make as many passes.
        """
        planned = self.planned.sharded(share)
        assert isinstance(planned, PlannedTables)
        return MatryoshkaTables(planned, width=self.width, levels=self.levels, seed=self.seed)

    def dense_parameters(self) -> list[nn.Parameter]:
        """Return those of the full tables: none, if they have an optimizer."""
        return self.planned.dense_parameters()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use `learning_rate` from the next update on.

        Raises:
            ValueError: if it is negative, or the tables have no optimizer of their own.
        """
        self.planned.set_learning_rate(learning_rate)

    def defer_updates(self, flag: bool) -> None:
        """Collect gradients instead of updating, while `flag` is True; see `Tables`.

        Every micro-batch draws a prefix of its own.
        """
        self.planned.defer_updates(flag)

    def _next_width(self) -> int:
        """Return the prefix of this pass."""
        if not self.training:
            return self.width
        drawn = hash_seed(self.seed, "matryoshka", self._step & 0xFFFFFFFF) % len(self.widths)
        self._step += 1
        return self.widths[drawn]

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[prefix + _STEP] = torch.tensor(self._step)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        step = state_dict.pop(prefix + _STEP, None)
        if step is None:
            missing_keys.append(prefix + _STEP)
        else:
            self._step = int(step)
        hand_on(state_dict, prefix, [key for key in state_dict if key.startswith(prefix)])


class Matryoshka(Method):
    """Full tables in training; serving keeps as many values of each vector as the budget allows.

    A table that is narrower than the prefix stays whole.

    Args:
        levels: how many prefixes of D, D/2, D/4, .. are trained, besides the one that is served.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.

    Raises:
        ValueError: if `levels` is below 1.
    """

    trains_as_served = False  # prefixes are drawn
    starts_as_full = False

    def __init__(self, *, levels: int = 4, init_std: float | None = None) -> None:
        if levels < 1:
            raise ValueError(f"Matryoshka: levels must be at least 1, got {levels}")
        self.levels = levels
        self.init_std = init_std

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return what `build` would make, allocating no table; see `Method`."""
        tables = self._tables(
            specs, served_width(specs, budget), optimizer=None, seed=0, device=torch.device("meta")
        )
        storage = tables.storage()
        parameters = {"width": tables.width, "trained_widths": list(tables.widths)}
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
    ) -> MatryoshkaTables:
        """Return untrained tables whose serving form keeps the budget; see `Method`.

        Raises:
            ValueError: if not even one value of each vector fits.
        """
        width = served_width(specs, budget)
        least = served_bytes(specs, width)
        if budget is not None:
            budget.require(least, specs, owner=type(self).__name__)
        return self._tables(specs, width, optimizer=optimizer, seed=seed, device=device)

    def _tables(
        self,
        specs: Sequence[TableSpec],
        width: int,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> MatryoshkaTables:
        initial = {}
        for spec in specs:
            std = self.init_std
            std = Initial.dlrm(spec.num_embeddings).std if std is None else std
            initial[spec.name] = Initial(distribution="uniform", spread=std * 3**0.5)
        planned = PlannedTables(
            specs,
            full_plan(specs),
            optimizer=optimizer,
            initial=initial,
            seed=seed,
            device=device,
        )
        return MatryoshkaTables(planned, width=width, levels=self.levels, seed=seed)


def truncated_plan(specs: Sequence[TableSpec], width: int) -> LookupPlan:
    """Return the plan of the first `width` values of every vector, with zeros behind."""
    full = full_plan(specs)
    dims = {table.name: table.width for table in full.tables}
    return LookupPlan(
        tables=tuple(replace(table, width=min(width, table.width)) for table in full.tables),
        outputs=tuple(
            replace(output, padding=max(0, dims[output.owner] - width)) for output in full.outputs
        ),
    )


def served_bytes(specs: Sequence[TableSpec], width: int) -> int:
    """Return the bytes of tables cut to `width`."""
    return sum(4 * spec.num_embeddings * min(width, spec.embedding_dim) for spec in specs)


def served_width(specs: Sequence[TableSpec], budget: Budget | None) -> int:
    """Return the largest prefix within the budget, or 1."""
    most = max(spec.embedding_dim for spec in specs)
    if budget is None:
        return most
    allowed = budget.allowed_bytes(specs)
    return max((w for w in range(1, most + 1) if served_bytes(specs, w) <= allowed), default=1)


def _prefix(vectors: Tensor, width: int) -> Tensor:
    """Return vectors (N, D) with zeros for all but the first `width` values."""
    is_cut = torch.arange(vectors.shape[1], device=vectors.device) >= width
    return vectors.masked_fill(is_cut, 0)
