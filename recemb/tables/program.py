"""Address programs: the steps from an id to the row of a physical table.

Shapes: `N` ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from recemb.kernels.hashing import MAX_ROWS, reference
from recemb.tables.blocked import Blocked
from recemb.tables.listed import Bucketed, Listed
from recemb.tables.ranked import Ranked


class Buffers(Protocol):
    """Named tensors that programs read."""

    def __getitem__(self, name: str, /) -> Tensor:
        """Return the tensor `name`."""
        ...


ABSENT = -1
"""The row of an id that has none: it contributes nothing, and counts for nothing in a mean."""


@dataclass(frozen=True, kw_only=True)
class Offset:
    """Row id + first.

    Attributes:
        first: what is added.
    """

    first: int

    def __str__(self) -> str:
        return f"+{self.first}"

    def apply(self, ids: Tensor, buffers: Buffers) -> Tensor:
        """Return the ids (N,) after this step."""
        return ids + self.first

    def limit(self, limit: int | None, sizes: Mapping[str, int]) -> int | None:
        """Return one more than the largest id after this step, given that before; None if unknown.

        Args:
            limit: one more than the largest id before this step; None for any int64.
            sizes: one more than the largest value of each buffer.
        """
        return None if limit is None else limit + self.first


@dataclass(frozen=True, kw_only=True)
class Hash:
    """Ids below `exact` keep a row of their own; the others share the rest by their hash.

    Attributes:
        seed: 32-bit, from `recemb.ids.hashing.hash_seed`.
        num_rows: rows in all.
        exact: how many rows belong to one id each.
        first: where the shared rows begin, which end at `num_rows`; None for right behind the
            exact ones.

    Raises:
        ValueError: if a number is out of range.
    """

    seed: int
    num_rows: int
    exact: int = 0
    first: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_rows <= MAX_ROWS:
            raise ValueError(f"Hash: num_rows must be in [1, {MAX_ROWS}], got {self.num_rows}")
        if not 0 <= self.exact < self.num_rows:
            raise ValueError(
                f"Hash: exact must leave a row to hash to, so be in [0, {self.num_rows}), "
                f"got {self.exact}"
            )
        if self.first is not None and not self.exact <= self.first < self.num_rows:
            raise ValueError(
                f"Hash: first must be in [{self.exact}, {self.num_rows}), got {self.first}"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"Hash: seed must be in [0, 2^32), got {self.seed}")

    def __str__(self) -> str:
        own = f", first {self.exact} exact" if self.exact else ""
        own += f", shared from {self.first}" if self.first is not None else ""
        return f"hash({self.seed:#010x}) over {self.num_rows}{own}"

    def apply(self, ids: Tensor, buffers: Buffers) -> Tensor:
        """Return the rows (N,)."""
        first = self.exact if self.first is None else self.first
        shared = reference.hash_rows(ids, self.seed, self.num_rows - first) + first
        if self.exact == 0:
            return shared
        is_exact = (ids >= 0) & (ids < self.exact)
        return torch.where(is_exact, ids.long(), shared)

    def limit(self, limit: int | None, sizes: Mapping[str, int]) -> int | None:
        """Return the number of rows."""
        return self.num_rows


@dataclass(frozen=True, kw_only=True)
class Digit:
    """A digit of the id in a mixed radix: id // divisor, modulo modulus where there is one.

    The remainder is Digit(modulus=m), the quotient Digit(divisor=m). Rounds down, as torch does, so
    that a negative id has the same remainder as its successor by m.

    Attributes:
        divisor: at least 1.
        modulus: at least 1; None for the quotient itself.

    Raises:
        ValueError: if a number is below 1.
    """

    divisor: int = 1
    modulus: int | None = None

    def __post_init__(self) -> None:
        if self.divisor < 1 or (self.modulus is not None and self.modulus < 1):
            raise ValueError(
                f"Digit: divisor and modulus must be at least 1, got {self.divisor} and "
                f"{self.modulus}"
            )

    def __str__(self) -> str:
        quotient = "" if self.divisor == 1 else f"// {self.divisor} "
        return (quotient + ("" if self.modulus is None else f"% {self.modulus}")).strip() or "// 1"

    def apply(self, ids: Tensor, buffers: Buffers) -> Tensor:
        """Return the digits (N,)."""
        if self.divisor > 1:
            ids = torch.div(ids, self.divisor, rounding_mode="floor")
        return ids if self.modulus is None else torch.remainder(ids, self.modulus)

    def limit(self, limit: int | None, sizes: Mapping[str, int]) -> int | None:
        """Return one more than the largest digit."""
        quotient = None if limit is None else -(-limit // self.divisor)
        if self.modulus is None:
            return quotient
        return self.modulus if quotient is None else min(self.modulus, quotient)


@dataclass(frozen=True, kw_only=True)
class Remap:
    """Reads the row from a buffer: buffer[id], or buffer[id, column]; ABSENT for none.

    Attributes:
        buffer: its name among the tables' buffers, int32 or int64, (num_ids,) or (num_ids, K).
        column: which column of a buffer of codes; None for a buffer of one dimension.
        is_total: whether no id is ABSENT, which makes lookups of one id per bag cheaper.
    """

    buffer: str
    column: int | None = None
    is_total: bool = False

    def __str__(self) -> str:
        return f"{self.buffer}[id{'' if self.column is None else f', {self.column}'}]"

    def apply(self, ids: Tensor, buffers: Buffers) -> Tensor:
        """Return the rows (N,), ABSENT among them."""
        buffer = buffers[self.buffer]
        found = buffer if self.column is None else buffer[:, self.column]
        return found.index_select(0, ids)

    def limit(self, limit: int | None, sizes: Mapping[str, int]) -> int | None:
        """Return one more than the largest value of the buffer."""
        return sizes.get(self.buffer)


@dataclass(frozen=True, kw_only=True)
class Bits:
    """A number made of some bits of the id.

    Bit i of the row is bit places[i] of the id: Bits(places=(0, 1, 2)) is the id modulo 8,
    Bits(places=(3, 4, 5)) the next octal digit, and Bits(places=(0, 2, 4)) every other bit.

    Attributes:
        places: of the bits, the lowest first, each in [0, 63), none twice.

    Raises:
        ValueError: if they are not.
    """

    places: tuple[int, ...]

    def __post_init__(self) -> None:
        # JSON knows lists only.
        object.__setattr__(self, "places", tuple(self.places))
        is_ok = all(type(p) is int and 0 <= p < 63 for p in self.places)
        if not self.places or not is_ok or len(set(self.places)) < len(self.places):
            raise ValueError(
                f"Bits: places must be different numbers in [0, 63), at least one, got "
                f"{list(self.places)}"
            )

    def __str__(self) -> str:
        low, high = self.places[0], self.places[-1]
        if self.places == tuple(range(low, high + 1)):
            return f"bits {low}..{high}"
        return f"bits {','.join(str(p) for p in self.places)}"

    def apply(self, ids: Tensor, buffers: Buffers) -> Tensor:
        """Return the numbers (N,)."""
        ids = ids.long()
        low, num = self.places[0], len(self.places)
        if self.places == tuple(range(low, low + num)):
            return (ids >> low) & ((1 << num) - 1)
        found = torch.zeros_like(ids)
        for i, place in enumerate(self.places):
            found |= ((ids >> place) & 1) << i
        return found

    def limit(self, limit: int | None, sizes: Mapping[str, int]) -> int | None:
        """Return one more than the largest number."""
        if limit is None:
            return 1 << len(self.places)
        last = limit - 1
        # Every id up to `last` is, bit by bit, no larger than one of these: `last` itself, or
        # `last` with one of its ones taken away and all bits below that set.
        tops = [last, *((last >> p << p) - 1 for p in range(last.bit_length()) if last >> p & 1)]
        return 1 + max(
            sum((top >> place & 1) << i for i, place in enumerate(self.places)) for top in tops
        )


@dataclass(frozen=True, kw_only=True)
class Within:
    """Row id - first for ids in [first, end), ABSENT for all others; a program's last step.

    Attributes:
        first: the first id that has a row, not negative.
        end: one more than the last; None for no end.

    Raises:
        ValueError: unless 0 <= first < end.
    """

    first: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        if self.first < 0 or (self.end is not None and self.end <= self.first):
            raise ValueError(
                f"Within: first must be at least 0 and below end, got {self.first} and {self.end}"
            )

    def __str__(self) -> str:
        return f"in [{self.first}, {'..' if self.end is None else self.end})"

    def apply(self, ids: Tensor, buffers: Buffers) -> Tensor:
        """Return the rows (N,), ABSENT among them."""
        is_inside = ids >= self.first
        if self.end is not None:
            is_inside &= ids < self.end
        return torch.where(is_inside, ids - self.first, ABSENT)

    def limit(self, limit: int | None, sizes: Mapping[str, int]) -> int | None:
        """Return one more than the largest row."""
        ends = [e for e in (limit, self.end) if e is not None]
        return max(0, min(ends) - self.first) if ends else None


Step = Offset | Hash | Digit | Remap | Bits | Within | Listed | Bucketed | Blocked | Ranked
Program = tuple[Step, ...]
"""Steps in order; none at all is the identity."""

_STEPS: dict[str, type[Step]] = {
    "offset": Offset,
    "hash": Hash,
    "digit": Digit,
    "remap": Remap,
    "bits": Bits,
    "within": Within,
    "listed": Listed,
    "bucketed": Bucketed,
    "blocked": Blocked,
    "ranked": Ranked,
}


def run_program(program: Program, ids: Tensor, buffers: Buffers) -> Tensor:
    """Return the rows (N,) of `ids` (N,): the slow, readable truth.

    Args:
        program: the steps.
        ids: int64 or int32.
        buffers: what Remap reads.
    """
    for step in program:
        ids = step.apply(ids, buffers)
    return ids


def program_limit(program: Program, limit: int | None, sizes: Mapping[str, int]) -> int | None:
    """Return one more than the largest row that `program` can give; None if it has no bound.

    Args:
        program: the steps.
        limit: ids are below this; None for any int64.
        sizes: one more than the largest value of each buffer, where it is known.
    """
    for step in program:
        limit = step.limit(limit, sizes)
    return limit


def may_be_absent(program: Program) -> bool:
    """Return whether `program` has a step that can give ABSENT."""
    return any(
        isinstance(step, Within | Ranked)
        or (isinstance(step, Remap) and not step.is_total)
        or (isinstance(step, Listed | Bucketed) and step.gives == "row")
        for step in program
    )


def program_to_json(program: Program) -> list[dict[str, Any]]:
    """Return plain JSON types."""
    names = {kind: name for name, kind in _STEPS.items()}
    return [{"step": names[type(step)], **asdict(step)} for step in program]


def program_from_json(steps: Sequence[Mapping[str, Any]]) -> Program:
    """Return the program that `program_to_json` wrote.

    Raises:
        ValueError: on an unknown step or field.
    """
    program = []
    for entry in steps:
        fields = dict(entry)
        name = fields.pop("step", None)
        if name not in _STEPS:
            raise ValueError(f"address program: step must be one of {list(_STEPS)}, got {name!r}")
        try:
            program.append(_STEPS[name](**fields))
        except TypeError as error:
            raise ValueError(f"address program: step '{name}' has wrong fields: {error}") from None
    return tuple(program)
