"""ROBE: rows made of chunks that lie anywhere in one flat array, shared by all features.

    row(x)[c Z + z] = g(x, c Z + z) M[(h_c(x) + z) mod |M|],   Z = chunk_size

Source: Desai, Chou, Shrivastava, "Random Offset Block Embedding (ROBE) for compressed embedding
tables in deep learning recommendation systems", MLSys 2022, section 3. Z is the LENGTH of a chunk,
as in the paper; the VLDB 2024 study calls the number of chunks Z. Departures: recemb's mixing hash
instead of a polynomial modulo a prime; the sign g is optional, as the authors' code has none.

The array is an ordinary parameter that the dense optimizer updates, with a pass over all of it at
every step: dear for arrays of many millions of values, that is for mild budgets of large tables.

Shapes: `B` examples, `F` features, `N` ids, `D` embedding_dim, `C` chunks of a row.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from recemb.ids.hashing import hash_seed as seed_of
from recemb.kernels.hashing import MAX_ROWS
from recemb.kernels.robe import robe_bag
from recemb.methods.computed import ComputedMethod, Design, largest_size
from recemb.tables.bags import Bags
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import Output
from recemb.tables.method import Budget
from recemb.tables.row_source import HASH_SEED, RowSource
from recemb.tables.spec import TableSpec

Scope = Literal["multiplexed", "per_feature"]

_STEPS = 1 << 20
_SEED_BYTES = 8
_SIGN = -1
"""The number, among chunks, of the hash that signs come from."""

_Arrays = Mapping[str, tuple[Sequence[TableSpec], int]]
"""The tables of each array, and its number of values."""


class FlatArray(RowSource):
    """One array that the rows of several tables lie in.

    Hash functions are salted by the table's name and the chunk's number.

    Args:
        num_values: |M|.
        widths: embedding_dim of each table, by name.
        chunk_size: Z; rows that are narrower are one chunk.
        is_signed: whether elements have hashed signs.
        hash_seed: of the hash functions.
        std: of the initial values, which are drawn uniformly.
        device: where the array lives.
    """

    form: ClassVar[str] = "flat_array"
    packable: ClassVar[str | None] = "values"

    def __init__(
        self,
        *,
        num_values: int,
        widths: Mapping[str, int],
        chunk_size: int,
        is_signed: bool,
        hash_seed: int,
        std: float,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.widths = dict(widths)
        self.chunk_size, self.is_signed, self.std = chunk_size, is_signed, std
        self._given_seed = hash_seed
        self._position = {table: i for i, table in enumerate(self.widths)}
        self.values = nn.Parameter(torch.empty(num_values, device=device))
        self.register_buffer(HASH_SEED, torch.tensor([hash_seed], device=device))
        chunks = max(-(-width // chunk_size) for width in self.widths.values())
        shape = (len(self.widths), chunks + 1)
        self.register_buffer(
            "salts", torch.empty(shape, dtype=torch.int64, device=device), persistent=False
        )
        if not self.values.is_meta:
            self.refresh()

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments but `device`."""
        return {
            "num_values": self.values.numel(),
            "widths": dict(self.widths),
            "chunk_size": self.chunk_size,
            "is_signed": self.is_signed,
            "hash_seed": self._given_seed,
            "std": self.std,
        }

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the array; a row has the deviation of a value, whatever the hash."""
        rule = Initial(distribution="uniform", spread=self.std * 3**0.5)
        rule.fill(self.values.detach(), generator)

    def refresh(self) -> None:
        """Make the seeds of all chunks, (tables, C + 1), the sign's last."""
        self._given_seed = int(self.get_buffer(HASH_SEED)[0])
        num_seeds = self.get_buffer("salts").shape[1]
        numbers = [*range(num_seeds - 1), _SIGN]
        found = [[seed_of(self._given_seed, t, c) for c in numbers] for t in self.widths]
        self.get_buffer("salts").copy_(torch.tensor(found))

    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,)."""
        return self._bag([table], ids, None, None, "sum").squeeze(1)

    def pooled(self, outputs: Sequence[Output], bags: Bags) -> list[Tensor]:
        """Return the pooled vectors (B, D) of each output, straight from the array.

        All outputs of one width and pooling are one call of the op.
        """
        groups: dict[tuple[int, str], list[int]] = {}
        for feature, output in enumerate(outputs):
            groups.setdefault((output.embedding_dim, output.pooling), []).append(feature)
        found: dict[int, Tensor] = {}
        for (_, pooling), features in groups.items():
            tables = [outputs[f].owner for f in features]
            vectors = self._bag(tables, *_bags_of(bags, features), pooling)
            found |= dict(zip(features, vectors.unbind(1), strict=True))
        return [found[feature] for feature in range(len(outputs))]

    def unpooled(self, outputs: Sequence[Output], bags: Bags) -> list[Tensor]:
        """Return the vectors (N, D) of all ids of each output."""
        ids = torch.split(bags.values, bags.sizes)
        return [self(output.owner, its) for output, its in zip(outputs, ids, strict=True)]

    def _bag(
        self,
        tables: Sequence[str],
        ids: Tensor,
        offsets: Tensor | None,
        weights: Tensor | None,
        pooling: str,
    ) -> Tensor:
        """Return the pooled rows (B, F, D) of F tables of one width, feature by feature."""
        width = self.widths[tables[0]]
        salts = self.get_buffer("salts")
        if len(tables) != len(self.widths) or list(tables) != list(self.widths):
            salts = salts[[self._position[table] for table in tables]]
        return robe_bag(
            self.values,
            ids,
            offsets,
            width=width,
            chunk_size=self.chunk_size,
            seeds=salts[:, : -(-width // self.chunk_size)].contiguous(),
            sign_seeds=salts[:, -1].contiguous() if self.is_signed else None,
            weights=weights,
            pooling=pooling,
        )


class ROBE(ComputedMethod):
    """As many values as the budget allows, to within 4 bytes.

    Args:
        chunk_size: Z, the length of a chunk; above a row's width the whole row is one.
        is_signed: whether elements have hashed signs.
        scope: "multiplexed", one array for all features, is the paper's; "per_feature" gives each
            table an array of its own, in proportion to its size.
        init_std: standard deviation of the initial values; None for the uniform distribution of
            DLRM, that of the largest table for an array that tables share.
        hash_seed: of the hash functions.

    Raises:
        ValueError: if `chunk_size` is below 1 or `scope` is unknown.
    """

    def __init__(
        self,
        *,
        chunk_size: int = 8,
        is_signed: bool = False,
        scope: Scope = "multiplexed",
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        super().__init__(init_std=init_std)
        if chunk_size < 1:
            raise ValueError(f"ROBE: chunk_size must be at least 1, got {chunk_size}")
        if scope not in ("multiplexed", "per_feature"):
            raise ValueError(f"ROBE: scope must be multiplexed or per_feature, got '{scope}'")
        self.chunk_size = chunk_size
        self.is_signed = is_signed
        self.scope: Scope = scope
        self.hash_seed = hash_seed

    def design(self, specs: Sequence[TableSpec], budget: Budget | None) -> Design:
        """Return the design of the longest arrays within `budget`, or of the shortest.

        Raises:
            ValueError: if an array would be longer than hashes reach.
        """
        if self.scope == "multiplexed":
            arrays = self._shared(specs, budget)
        else:
            arrays = self._separate(specs, budget)
        for name, (_, num_values) in arrays.items():
            if num_values > MAX_ROWS:
                raise ValueError(
                    f"{type(self).__name__}: array '{name}' would have {num_values:,} values, but "
                    f"hashes reach {MAX_ROWS:,}; lower the budget, or set scope=per_feature"
                )
        return Design(
            make={
                name: partial(self._make, members, num_values)
                for name, (members, num_values) in arrays.items()
            },
            source_of={s.name: name for name, (members, _) in arrays.items() for s in members},
            parameters={"values": {name: num_values for name, (_, num_values) in arrays.items()}},
        )

    def _shared(self, specs: Sequence[TableSpec], budget: Budget | None) -> _Arrays:
        """Return the one array, or nothing where all tables fit as they are."""
        full = sum(spec.full_bytes for spec in specs)
        allowed = full if budget is None else budget.allowed_bytes(specs)
        least = max(self._chunk_of(spec) for spec in specs)
        num_values = max(least, (allowed - _SEED_BYTES) // 4)
        if allowed >= full or 4 * num_values + _SEED_BYTES >= full:
            return {}
        return {"shared": (specs, num_values)}

    def _separate(self, specs: Sequence[TableSpec], budget: Budget | None) -> _Arrays:
        """Return an array for each table that it shrinks."""
        size = largest_size(
            lambda size: sum(min(s.full_bytes, self._array_bytes(s, size)) for s in specs),
            budget,
            specs,
            most=_STEPS,
        )
        return {
            spec.name: ([spec], (self._array_bytes(spec, size) - _SEED_BYTES) // 4)
            for spec in specs
            if self._array_bytes(spec, size) < spec.full_bytes
        }

    def _array_bytes(self, spec: TableSpec, size: int) -> int:
        values = spec.num_embeddings * spec.embedding_dim * size // _STEPS
        return 4 * max(values, self._chunk_of(spec)) + _SEED_BYTES

    def _chunk_of(self, spec: TableSpec) -> int:
        return min(self.chunk_size, spec.embedding_dim)

    def _make(self, specs: Sequence[TableSpec], num_values: int, device: torch.device) -> FlatArray:
        return FlatArray(
            num_values=num_values,
            widths={spec.name: spec.embedding_dim for spec in specs},
            chunk_size=self.chunk_size,
            is_signed=self.is_signed,
            hash_seed=self.hash_seed,
            std=min(self.std(spec) for spec in specs),
            device=device,
        )


def _bags_of(bags: Bags, features: Sequence[int]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return ids, offsets and weights of some of the features' bags."""
    if len(features) == len(bags.sizes):
        return bags.values, bags.offsets, bags.weights
    at = list(features)
    ids = torch.split(bags.values, bags.sizes)
    values = torch.cat([ids[f] for f in at])
    if bags.lengths is None:
        return values, None, None
    lengths = bags.lengths.view(len(bags.sizes), -1)[at].flatten()
    offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=values.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    weights = None
    if bags.weights is not None:
        its = torch.split(bags.weights, bags.sizes)
        weights = torch.cat([its[f] for f in at])
    return values, offsets, weights
