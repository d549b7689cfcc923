"""The task of a case: tables, ids and gradients.

26 features; B examples; L ids in every bag; tables of 100,000 to 1,000,000 rows, log-spaced (half
of that for vectors of 128 values), or one table of 1,000,000 rows that all features share. Ids are
uniform or follow Zipf's law (exponent 1.05). The optimizer is row-wise Adagrad, sums are pooled,
vectors and gradients are float32.
"""

import functools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.lookup_plan import DType

NUM_FEATURES, NUM_BATCHES = 26, 3
ZIPF_EXPONENT = 1.05
LEARNING_RATE, EPS = 0.02, 1e-8
_SHARED_ROWS = 1_000_000
_LEAST_ROWS, _MOST_ROWS = 100_000, 1_000_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the grid.

    Attributes:
        batch_size: B.
        length: L, ids in every bag.
        width: of the vectors.
        dtype: of the tables.
        is_zipf: whether ids follow Zipf's law.
        is_shared: whether all features read one table.
        is_hashed: whether ids are any int64, hashed to rows.
    """

    batch_size: int
    length: int
    width: int
    dtype: DType = "float32"
    is_zipf: bool = False
    is_shared: bool = False
    is_hashed: bool = False

    def __str__(self) -> str:
        words = [
            f"B{self.batch_size} L{self.length} D{self.width} {self.dtype}",
            "zipf" if self.is_zipf else "uniform",
            "one table" if self.is_shared else "26 tables",
            *(["hashed"] if self.is_hashed else []),
        ]
        return " ".join(words)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def num_rows(self) -> list[int]:
        """Return the rows of each feature's table."""
        if self.is_shared:
            return [_SHARED_ROWS] * NUM_FEATURES
        step = (_MOST_ROWS / _LEAST_ROWS) ** (1 / (NUM_FEATURES - 1))
        least = _LEAST_ROWS // (2 if self.width > 64 else 1)
        return [round(least * step**f) for f in range(NUM_FEATURES)]

    @cached_property
    def batches(self) -> list[KeyedJaggedTensor]:
        """Return the ids, feature by feature."""
        generator = torch.Generator().manual_seed(0)
        lengths = torch.full((NUM_FEATURES * self.batch_size,), self.length, dtype=torch.int32)
        made = []
        for _ in range(NUM_BATCHES):
            ids = torch.cat([self._ids(rows, generator) for rows in self.num_rows])
            made.append(KeyedJaggedTensor(keys=feature_names(), values=ids, lengths=lengths))
        return made

    @cached_property
    def grad(self) -> Tensor:
        """Return the gradient of the vectors (B, 26 * width)."""
        generator = torch.Generator().manual_seed(1)
        shape = (self.batch_size, NUM_FEATURES * self.width)
        return torch.randn(shape, generator=generator) * 1e-3

    def moved_bytes(self, with_update: bool) -> tuple[int, int]:
        """Return bytes that one pass must move: counting every id's row, and distinct rows once."""
        item = torch.empty((), dtype=getattr(torch, self.dtype)).element_size()
        row = self.width * item
        ids = self.batches[0].values().numel()
        firsts = [f * (1 << 44) for f in range(NUM_FEATURES)]
        parts = torch.split(self.batches[0].values(), ids // NUM_FEATURES)
        places = parts if self.is_shared else [p + f for p, f in zip(parts, firsts, strict=True)]
        unique = int(torch.unique(torch.cat(list(places))).numel())
        output = self.grad.nbytes
        logical, distinct = ids * (row + 8) + output, unique * row + ids * 8 + output
        if with_update:
            logical += ids * 2 * row + output + ids * 8
            distinct += unique * (2 * row + 8) + output
        return logical, distinct

    def _ids(self, rows: int, generator: torch.Generator) -> Tensor:
        num = self.batch_size * self.length
        u = torch.rand(num, generator=generator, dtype=torch.float64)
        if self.is_zipf:
            power = 1 - ZIPF_EXPONENT
            ids = (u * ((rows + 1) ** power - 1) + 1) ** (1 / power) - 1
            ids = ids.long().clamp(0, rows - 1)
        else:
            ids = (u * rows).long()
        # Spread, so that frequent ids are not neighbours in memory; and any int64 if hashed.
        return ids * 2654435761 % (2**62 if self.is_hashed else rows)


@functools.cache
def initial_weight(num_rows: int, width: int, dtype: str) -> Tensor:
    """Return initial weights (num_rows, width), the same for everyone."""
    generator = torch.Generator().manual_seed(2)
    values = torch.empty(num_rows, width).uniform_(-0.01, 0.01, generator=generator)
    return values.to(getattr(torch, dtype))


def feature_names() -> list[str]:
    return [f"f{f}" for f in range(NUM_FEATURES)]
