"""The cases of the GPU benchmark: tables, batches of ids, the truth in float64, bytes moved.

Shapes: `T` tables, one feature each, `B` batch, `L` ids per bag, `N = T * B * L`, `R` rows, `D`.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

LR, EPS = 0.05, 1e-8
NUM_BATCHES = 4
"""Batches of ids that a measurement goes through in turn, so that no cache holds the rows."""
_HASH_SEED = 0x9E3779B9


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the grid.

    Attributes:
        batch_size: B.
        length: L, of every bag.
        width: D.
        dtype: of the rows, their gradient and the result.
        is_zipf: whether ids follow Zipf's law with exponent 1.05, or are uniform.
        is_hashed: whether ids go through the hash, or are rows.
        num_tables: T.
        fewest_rows: of the smallest table.
        most_rows: of the largest; sizes are evenly spaced in their logarithm.
    """

    batch_size: int
    length: int
    width: int
    dtype: str = "float32"
    is_zipf: bool = False
    is_hashed: bool = False
    num_tables: int = 26
    fewest_rows: int = 100_000
    most_rows: int = 1_000_000

    def __str__(self) -> str:
        """Return the case as the tables name it."""
        words = [f"B{self.batch_size} T{self.num_tables} L{self.length} D{self.width} {self.dtype}"]
        words += ["zipf" if self.is_zipf else "uniform", "hash" if self.is_hashed else "plain"]
        return " ".join([*words, f"rows {self.fewest_rows}..{self.most_rows}"])

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return `dtype` as torch's."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row."""
        return self.width * self.torch_dtype.itemsize

    @property
    def num_ids(self) -> int:
        """Return N."""
        return self.num_tables * self.batch_size * self.length

    @property
    def table_rows(self) -> list[int]:
        """Return the rows of each table."""
        steps = max(self.num_tables - 1, 1)
        ratio = self.most_rows / self.fewest_rows
        return [round(self.fewest_rows * ratio ** (t / steps)) for t in range(self.num_tables)]

    @property
    def first_rows(self) -> list[int]:
        """Return the first row of each table in the buffer."""
        return [0, *itertools.accumulate(self.table_rows)][:-1]

    @property
    def seeds(self) -> list[int]:
        """Return the seed of each feature's hash."""
        return [(_HASH_SEED * (t + 1)) & 0xFFFFFFFF for t in range(self.num_tables)]


def grid(*, quick: bool) -> Iterator[Case]:
    """Yield the issue's grid, and tables far beyond any cache for the bounds on DRAM."""
    sizes, lengths, widths = (4096, 65536), (1, 20), (16, 64, 128)
    dtypes = ("float32", "float16")
    if quick:
        sizes, lengths, widths, dtypes = (4096,), (1, 20), (64,), ("float32",)
    for size, length, width, dtype, is_zipf, is_hashed in itertools.product(
        sizes, lengths, widths, dtypes, (False, True), (False, True)
    ):
        yield Case(batch_size=size, length=length, width=width, dtype=dtype,
                   is_zipf=is_zipf, is_hashed=is_hashed)  # fmt: skip
    for width, length in itertools.product((64, 128), (1, 20)):
        yield Case(batch_size=65536, length=length, width=width,
                   fewest_rows=4_000_000, most_rows=4_000_000)  # fmt: skip


def dry_grid() -> Iterator[Case]:
    """Yield cases of a few rows, to run the code and measure nothing."""
    for length, is_hashed, dtype in ((1, False, "float32"), (3, True, "float32")):
        yield Case(batch_size=4, length=length, width=8, dtype=dtype, is_hashed=is_hashed,
                   is_zipf=is_hashed, num_tables=3, fewest_rows=20, most_rows=50)  # fmt: skip


class Data:
    """Rows, ids and gradient of a case, on a device.

    Attributes:
        weight: (R, D).
        values: one (N,) int64 per batch, feature after feature.
        offsets: (T * B + 1,) int64.
        grad: (B, T * D).
    """

    def __init__(self, case: Case, device: str, seed: int) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        self.case = case
        shape = (sum(case.table_rows), case.width)
        self.weight = torch.empty(shape, device=device, dtype=case.torch_dtype)
        self.weight.normal_(generator=generator)
        per_table = case.batch_size * case.length
        self.values = [
            torch.cat([_ids(case, r, per_table, generator) for r in case.table_rows])
            for _ in range(NUM_BATCHES)
        ]
        self.offsets = torch.arange(0, case.num_ids + 1, case.length, device=device)
        shape = (case.batch_size, case.num_tables * case.width)
        self.grad = torch.empty(shape, device=device, dtype=case.torch_dtype)
        self.grad.normal_(generator=generator)
        self.first_rows = torch.tensor(case.first_rows, device=device)
        self.seeds = torch.tensor(case.seeds, device=device)
        self.num_rows = torch.tensor(case.table_rows, device=device)

    def rows(self, values: Tensor) -> Tensor:
        """Return the row in its table of each id, (T, B * L) int64: the hash in torch, if any."""
        from recemb.kernels.hashing import hash_rows

        values = values.view(self.case.num_tables, -1)
        if not self.case.is_hashed:
            return values
        return hash_rows(values, self.seeds[:, None], self.num_rows[:, None])

    def buffer_rows(self, batch: int) -> Tensor:
        """Return the row in the buffer of each id, (T, B * L) int64."""
        return self.rows(self.values[batch]) + self.first_rows[:, None]

    def slots(self) -> Tensor:
        """Return the slots of the features, each on its table."""
        from recemb.kernels.bag import pack_slots

        c = self.case
        flags = [c.is_hashed] * c.num_tables
        return pack_slots(range(c.num_tables), c.first_rows, c.table_rows, c.seeds, flags,
                          [False] * c.num_tables, self.weight.device)  # fmt: skip

    def sampled_vectors(self, batch: int, bags: Tensor) -> Tensor:
        """Return the sums (bags, D) of the bags of those numbers, in float64; bag f * B + b."""
        rows = self.buffer_rows(batch).view(-1, self.case.length)[bags]
        return self.weight[rows].double().sum(1)

    def sampled_update(self, batch: int, rows: Tensor) -> Tensor:
        """Return those rows (n, D) after a step of row-wise Adagrad from state 0, in float64."""
        all_rows, c = self.buffer_rows(batch).view(-1), self.case
        grads = self.grad.view(c.batch_size, c.num_tables, c.width)
        found = []
        for row in rows.tolist():
            bag = (all_rows == row).nonzero().view(-1) // c.length
            g = grads[bag % c.batch_size, bag // c.batch_size].double().sum(0)
            step = LR * g / (g.square().mean().sqrt() + EPS)
            found.append(self.weight[row].double() - step)
        return torch.stack(found)

    def num_unique(self) -> float:
        """Return how many rows a batch touches, the mean over the batches."""
        counts = [self.buffer_rows(i).unique().numel() for i in range(NUM_BATCHES)]
        return sum(counts) / len(counts)


def moved_bytes(case: Case, num_unique: float, operation: str) -> tuple[float, float]:
    """Return the logical and the unique-row bytes that `operation` must move.

    Logical: every lookup reads its row, forward, and its gradient, backward. Unique: each touched
    row and each bag's gradient once. The update reads and writes each touched row and its state of
    4 bytes in both. Ids and offsets count; the sort's own traffic does not.
    """
    ids = 8 * (case.num_ids + case.num_tables * case.batch_size + 1)
    bags = case.num_tables * case.batch_size * case.row_bytes
    logical = unique = 0.0
    if "forward" in operation:
        logical += ids + bags + case.num_ids * case.row_bytes
        unique += ids + bags + num_unique * case.row_bytes
    if "update" in operation:
        update = 2 * num_unique * (case.row_bytes + 4)
        logical += ids + case.num_ids * case.row_bytes + update
        unique += ids + bags + update
    return logical, unique


def _ids(case: Case, num_rows: int, count: int, generator: torch.Generator) -> Tensor:
    if not case.is_zipf:
        return torch.randint(num_rows, (count,), generator=generator, device=generator.device)
    # The inverse of Zipf's distribution function, its sum replaced by the integral.
    uniform = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    power = 1 - 1.05
    rank = ((uniform * ((num_rows + 1) ** power - 1) + 1) ** (1 / power)).long() - 1
    # An odd step that shares no factor with the table spreads the frequent ids over it.
    step = next(s for s in range(7919, 10**6, 2) if math.gcd(s, num_rows) == 1)
    return rank.clamp_(0, num_rows - 1) * step % num_rows
