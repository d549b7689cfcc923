"""CERP's tables: sums of two rows, many of whose values are switched off.

Shapes: `N` rows that were read, `n` rows of a physical table, `D` its width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.methods.pep import SoftThreshold, SoftThresholds
from recemb.methods.pruned import FixedMask, serving_parts
from recemb.methods.ranking import magnitudes
from recemb.methods.sparse_pair import SparsePair
from recemb.methods.sparse_rows import SparseRows, form_of, smallest_form
from recemb.tables.computed import ComputedTables
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.program import Digit
from recemb.tables.row_source import RowSource
from recemb.tables.spec import TableSpec, output_keys
from recemb.tables.storage import Storage
from recemb.tables.transform import TransformFactory


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """How a table is the sum of two: e(i) = P[i mod modulus] + Q[i // divisor].

    Attributes:
        spec: the table.
        modulus: b, the rows of P; 0 for a table of one row for each id.
    """

    spec: TableSpec
    modulus: int

    @property
    def divisor(self) -> int:
        """Return c = ceil(n / b)."""
        return -(-self.spec.num_embeddings // self.modulus)

    @property
    def parts(self) -> tuple[TableSpec, ...]:
        """Return the physical tables as if they were tables of their own."""
        name, num = self.spec.name, self.spec.num_embeddings
        if not self.modulus:
            return (self._part(name, num),)
        quotients = -(-num // self.divisor)
        return self._part(f"{name}.p", self.modulus), self._part(f"{name}.q", quotients)

    @property
    def lookups(self) -> tuple[VirtualLookup, ...]:
        """Return the rows that are added."""
        if not self.modulus:
            return (VirtualLookup(table=self.spec.name),)
        steps = (Digit(modulus=self.modulus), Digit(divisor=self.divisor))
        return tuple(
            VirtualLookup(table=part.name, program=(step,))
            for part, step in zip(self.parts, steps, strict=True)
        )

    def _part(self, name: str, num_rows: int) -> TableSpec:
        return TableSpec(
            name=name,
            num_embeddings=num_rows,
            embedding_dim=self.spec.embedding_dim,
            feature_names=self.spec.feature_names,
        )


class ComposedThreshold(SoftThreshold):
    """Soft thresholds, and a penalty on sums that are near zero: - gamma ||tanh(eta (p + q))||^2.

    It is over the distinct sums of the last forward pass in training.

    Args:
        group: the tables.
        settings: of the thresholds.
        pairs: names of the tables P and Q that are added.
        gamma: the weight.
        eta: the slope.
    """

    gamma: Tensor

    def __init__(
        self,
        group: Group,
        settings: SoftThresholds,
        *,
        pairs: Sequence[tuple[str, str]],
        gamma: float,
        eta: float,
    ) -> None:
        super().__init__(group, settings)
        places = {table.name: place for place, table in enumerate(group.tables)}
        self._pairs = [(places[p], places[q]) for p, q in pairs if p in places]
        self._eta = eta
        self._sums: Tensor | None = None
        self.register_buffer("gamma", torch.tensor(gamma))

    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the vectors (N, D), shrunk."""
        found = super().forward(vectors, rows, tables)
        if self.training and torch.is_grad_enabled() and found.requires_grad:
            parts = [self._distinct(found, rows, tables == p, tables == q) for p, q in self._pairs]
            self._sums = torch.cat(parts) if parts else None
        return found

    def penalty(self) -> Tensor:
        """Return - gamma ||tanh(eta (p + q))||^2, once for each forward pass."""
        sums, self._sums = self._sums, None
        if sums is None:
            return torch.zeros(())
        return -self.gamma * torch.tanh(self._eta * sums).square().sum()

    def _distinct(self, vectors: Tensor, rows: Tensor, is_p: Tensor, is_q: Tensor) -> Tensor:
        """Return the distinct sums of rows of P and Q, which come in the same order."""
        pairs = rows[is_p].long() * self.group.num_rows + rows[is_q].long()
        _, places = torch.unique(pairs, return_inverse=True)
        num = int(places.max()) + 1 if places.numel() else 0
        at = torch.arange(places.numel(), device=places.device)
        # The last of equals, whichever that is: their sums are the same.
        chosen = at.new_zeros(num).scatter_reduce_(0, places, at, "amax")
        return vectors[is_p][chosen] + vectors[is_q][chosen]


class CerpTables(PlannedTables):
    """Tables that are sums of two, dense in training and sparse in serving.

    Args:
        specs: the tables.
        buckets: how each is composed.
        masks: which values (n, D) of a physical table stay, for good; None if `transform` decides.
        transform: makes what happens to rows; not together with `masks`.
        initial: how physical tables are drawn, or what they are.
        counts: how many values of each physical table `masks` keeps, spread evenly; what `storage`
            counts where there is no memory.
        optimizer: how rows are updated.
        seed: of the initial weights.
        device: where the tables live.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        buckets: Sequence[Buckets],
        *,
        masks: Mapping[str, Tensor] | None = None,
        transform: TransformFactory | None = None,
        initial: Mapping[str, Initial | Tensor],
        counts: Mapping[str, int] | None = None,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.buckets = tuple(buckets)
        self.parts = [part for its in buckets for part in its.parts]
        self._counts = counts if device.type == "meta" else None

        def masked(group: Group) -> FixedMask | None:
            assert masks is not None
            its = {t.name: masks[t.name] for t in group.tables if t.name in masks}
            return FixedMask(group, its) if its else None

        super().__init__(
            specs,
            _plan(specs, buckets),
            optimizer=optimizer,
            transform=masked if masks else transform,
            initial=initial,
            seed=seed,
            device=device,
        )

    @torch.no_grad()
    def served(self, name: str) -> Tensor:
        """Return the values (n, D) of a physical table as lookups in eval mode see them."""
        weight = self.table(name).detach()
        rows = torch.arange(weight.shape[0], device=weight.device)
        return self.transforms.apply_to_rows(name, weight, rows)

    @torch.no_grad()
    def margins(self) -> dict[str, Tensor]:
        """Return |v| - sigmoid(s) of physical tables (n, D) with thresholds, |v| of others."""
        scores = {part.name: magnitudes(self.table(part.name).detach()) for part in self.parts}
        for soft in self.thresholds():
            for place, table in enumerate(soft.group.tables):
                rows = torch.arange(table.num_rows, device=soft.s.device)
                rows += soft.group.first_rows[place]
                scores[table.name] -= soft.thresholds(rows, torch.full_like(rows, place))
        return scores

    def thresholds(self) -> list[ComposedThreshold]:
        """Return the soft thresholds, group by group."""
        return [t for t in self.transforms.all() if isinstance(t, ComposedThreshold)]

    def storage(self) -> Storage:
        """Return the bytes of the sparse forms in serving, and of dense tables in training."""
        train = super().storage()
        if self._counts is not None:
            forms = [
                smallest_form(
                    num_rows=part.num_embeddings,
                    width=part.embedding_dim,
                    num_kept=min(part.num_embeddings, self._counts[part.name]),
                    num_values=self._counts[part.name],
                )
                for part in self.parts
            ]
        else:
            forms = [form_of(self.served(part.name)) for part in self.parts]
        return Storage(full_bytes=train.full_bytes, serve=serving_parts(forms), train=train.train)

    def freeze(self) -> ComputedTables:
        """Return the sparse forms, which give bit-equal vectors."""
        sources: dict[str, RowSource] = {}
        for its in self.buckets:
            values = [self.served(part.name) for part in its.parts]
            if its.modulus:
                source: RowSource = SparsePair.of(
                    values[0], values[1], modulus=its.modulus, divisor=its.divisor
                )
            else:
                source = SparseRows.of(values[0])
            sources[its.spec.name] = source
        return ComputedTables(
            self.specs,
            sources=sources,
            source_of={name: name for name in sources},
            planned=None,
            bounds=self._bounds.policy,
        ).eval()


def _plan(specs: Sequence[TableSpec], buckets: Sequence[Buckets]) -> LookupPlan:
    lookups = {its.spec.name: its.lookups for its in buckets}
    return LookupPlan(
        tables=tuple(
            PhysicalTable(name=part.name, num_rows=part.num_embeddings, width=part.embedding_dim)
            for its in buckets
            for part in its.parts
        ),
        outputs=tuple(
            Output(
                key=key,
                feature=feature,
                owner=spec.name,
                num_ids=spec.num_embeddings,
                embedding_dim=spec.embedding_dim,
                pooling=spec.pooling,
                lookups=lookups[spec.name],
                combine="sum" if len(lookups[spec.name]) > 1 else "concat",
            )
            for key, (spec, feature) in output_keys(specs).items()
        ),
    )
