"""What DPQ and MGQE share: queries in training, codes in serving, and how sizes are chosen."""

import abc
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recemb.methods.codes import CodeForm, CodeRows, bits_of
from recemb.methods.quantizer import Quantization, Quantizer
from recemb.tables.blueprint import Blueprint
from recemb.tables.computed import ComputedTables
from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.method import Budget, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.row_source import merge_bytes
from recemb.tables.spec import TableSpec, refuse_any_id
from recemb.tables.storage import Storage

MOST_CENTROIDS = 256
"""The most that a budget chooses, unless more are asked for."""


class CodedTables(PlannedTables):
    """Queries, which train as full tables do, and codebooks; in serving codes and codebooks.

    Args:
        specs: the tables.
        forms: of the tables that are coded, by name; the others stay as they are.
        quantization: how queries become centroids.
        heads: which rows (n,) of a table may use all centroids; all, where it is not named.
        init_std: of queries and centroids; None for the uniform distribution of DLRM.
        optimizer: how queries are updated.
        seed: of the initial weights.
        device: where the tables live.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        forms: Mapping[str, CodeForm],
        quantization: Quantization,
        heads: Mapping[str, Tensor],
        init_std: float | None,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.forms = dict(forms)
        rules = {spec.name: _rule(spec, init_std) for spec in specs}

        def quantizer(group: Group) -> Quantizer | None:
            if not any(table.name in forms for table in group.tables):
                return None
            return Quantizer(group, forms=forms, quantization=quantization, heads=heads)

        super().__init__(
            specs,
            full_plan(specs),
            optimizer=optimizer,
            transform=quantizer,
            initial=rules,
            seed=seed,
            device=device,
        )
        if device.type != "meta":
            for name in forms:
                queries = self.table(name).detach()
                self.quantizer_of(name).initialise(seed, name, queries, rules[name])

    def quantizer_of(self, table: str) -> Quantizer:
        """Return the codebooks of a table."""
        for found in self.transforms.all():
            if isinstance(found, Quantizer) and any(t.name == table for t in found.group.tables):
                return found
        raise AssertionError(f"table '{table}' is not coded")

    def rows(self, key: str, ids: Tensor) -> Tensor:
        """Return the vectors (N, D) of `ids` (N,), those of serving: centroids.

        In training mode `forward` normalises scores by the batch, and may choose others.

        Raises:
            ValueError: on an unknown key or an id out of range.
        """
        mode = self.transforms.training
        self.transforms.eval()
        try:
            return super().rows(key, ids)
        finally:
            self.transforms.train(mode)

    def storage(self) -> Storage:
        """Return the bytes of the codes in serving, and of queries and codebooks in training."""
        train = super().storage()
        serve = serving_parts(self.specs, self.forms)
        return Storage(full_bytes=train.full_bytes, serve=serve, train=train.train)

    def freeze(self) -> ComputedTables:
        """Return the codes of all ids, encoded now, which give bit-equal vectors."""
        plain = [spec for spec in self.specs if spec.name not in self.forms]
        planned = None
        if plain:
            weights = {spec.name: self.table(spec.name).detach() for spec in plain}
            made = Blueprint(plan=full_plan(plain), initial=weights)
            device = weights[plain[0].name].device
            tables = made.tables(
                plain, optimizer=None, seed=0, device=device, bounds=self._bounds.policy
            )
            planned = tables.without_training()
        return ComputedTables(
            self.specs,
            sources={name: self._codes_of(name) for name in self.forms},
            source_of={name: name for name in self.forms},
            planned=planned,
            bounds=self._bounds.policy,
        ).eval()

    def _codes_of(self, table: str) -> CodeRows:
        quantizer = self.quantizer_of(table)
        codes = quantizer.codes(table, self.table(table).detach())
        codebooks, is_head = quantizer.codebooks(table), quantizer.is_head(table)
        return CodeRows.of(self.forms[table], codes, codebooks, is_head)


class Level(NamedTuple):
    """A size: parts of the widest vectors, and centroids of a part."""

    num_parts: int
    num_centroids: int


class CodingMethod(Method, abc.ABC):
    """A method whose tables are served as codes, trained by a single fit.

    Of all numbers of parts that divide the width, and of 2, 4, .. up to 256 centroids, a budget
    chooses those that give a vector the most bits of code, and of these the most centroids.
    Narrower vectors have parts of about the same width. A table that codes and codebooks make no
    smaller stays as it is.

    Args:
        num_parts: parts of the widest vectors where there is no budget, or the next smaller number
            that divides the width.
        num_centroids: of a part, where there is no budget.
        quantization: how queries become centroids.
        init_std: of queries and centroids; None for the uniform distribution of DLRM.

    Raises:
        ValueError: on a number outside its range.
    """

    trains_as_served = False  # codewords of the batch's own vectors

    def __init__(
        self,
        *,
        num_parts: int,
        num_centroids: int,
        quantization: Quantization,
        init_std: float | None,
    ) -> None:
        if num_parts < 1 or not 2 <= num_centroids <= 2**16:
            raise ValueError(
                f"{type(self).__name__}: num_parts must be at least 1 and num_centroids in "
                f"[2, 65536], got {num_parts} and {num_centroids}"
            )
        self.num_parts = num_parts
        self.num_centroids = num_centroids
        self.quantization = quantization
        self.init_std = init_std

    @abc.abstractmethod
    def form(self, spec: TableSpec, num_parts: int, num_centroids: int) -> CodeForm:
        """Return the form of a table of that many parts and centroids."""

    def heads(
        self, specs: Sequence[TableSpec], forms: Mapping[str, CodeForm], stats: IdCounts
    ) -> dict[str, Tensor]:
        """Return which rows (n,) bool of the coded tables may use all centroids; none means all."""
        return {}

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return what `build` would make, allocating no table; see `Method`."""
        refuse_any_id(specs, type(self).__name__)
        level = self.level(specs, budget)
        forms = self._forms(specs, level)
        device = torch.device("meta")
        heads = {
            name: torch.empty(form.num_rows, dtype=torch.bool, device=device)
            for name, form in forms.items()
            if form.num_head is not None
        }
        storage = self._tables(specs, forms, heads, None, 0, device).storage()
        parameters = {
            "num_centroids": level.num_centroids,
            "num_parts": {name: form.num_parts for name, form in forms.items()},
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
    ) -> CodedTables:
        """Return untrained tables within `budget`; see `Method`.

        Raises:
            ValueError: if the budget is below the smallest size that the method has.
        """
        refuse_any_id(specs, type(self).__name__)
        forms = self._forms(specs, self.level(specs, budget))
        least = sum(serving_parts(specs, forms).values())
        if budget is not None:
            budget.require(least, specs, owner=type(self).__name__)
        heads = self.heads(specs, forms, stats)
        return self._tables(specs, forms, heads, optimizer, seed, device)

    def bits(self, level: Level) -> float:
        """Return the bits of code that an id has at a level, in the mean."""
        return level.num_parts * bits_of(level.num_centroids)

    def level(self, specs: Sequence[TableSpec], budget: Budget | None) -> Level:
        """Return the level of the most bits within `budget`; that of the fewest if none fits it."""
        widest = max(spec.embedding_dim for spec in specs)
        if budget is None:
            return Level(_largest_divisor(widest, self.num_parts), self.num_centroids)
        most = max(self.num_centroids, MOST_CENTROIDS)
        levels = [
            Level(num_parts, 2**bits)
            for num_parts in range(1, widest + 1)
            for bits in range(1, 17)
            if widest % num_parts == 0 and 2**bits <= most
        ]
        allowed = budget.allowed_bytes(specs)
        for level in sorted(levels, key=self._rank, reverse=True):
            if sum(serving_parts(specs, self._forms(specs, level)).values()) <= allowed:
                return level
        return min(levels, key=self._rank)

    def _rank(self, level: Level) -> tuple[float, int]:
        """Return what a better level has more of: bits of a vector, and then centroids."""
        return self.bits(level), level.num_centroids

    def _forms(self, specs: Sequence[TableSpec], level: Level) -> dict[str, CodeForm]:
        widest = max(spec.embedding_dim for spec in specs)
        found = {}
        for spec in specs:
            most = level.num_parts * spec.embedding_dim // widest
            num_parts = _largest_divisor(spec.embedding_dim, most)
            form = self.form(spec, num_parts, level.num_centroids)
            if form.num_bytes < spec.full_bytes:
                found[spec.name] = form
        return found

    def _tables(
        self,
        specs: Sequence[TableSpec],
        forms: Mapping[str, CodeForm],
        heads: Mapping[str, Tensor],
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> CodedTables:
        return CodedTables(
            specs,
            forms=forms,
            quantization=self.quantization,
            heads=heads,
            init_std=self.init_std,
            optimizer=optimizer,
            seed=seed,
            device=device,
        )


def serving_parts(specs: Sequence[TableSpec], forms: Mapping[str, CodeForm]) -> dict[str, int]:
    """Return the bytes of all tables in serving, part by part."""
    plain = sum(spec.full_bytes for spec in specs if spec.name not in forms)
    parts = [form.parts() for form in forms.values()]
    return merge_bytes([*parts, {"weights": plain} if plain else {}])


def _rule(spec: TableSpec, init_std: float | None) -> Initial:
    if init_std is None:
        return Initial.dlrm(spec.num_embeddings)
    return Initial(distribution="uniform", spread=init_std * 3**0.5)


def _largest_divisor(width: int, most: int) -> int:
    """Return the largest divisor of `width` that is at most `most`, at least 1."""
    return max(p for p in range(1, width + 1) if width % p == 0 and p <= max(1, most))
