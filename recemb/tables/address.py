"""From the ids of a batch to rows of a buffer: the address programs of a unit, together.

Shapes: `B` examples, `F` features whose ids are read, `S` lookups, `N` ids of all lookups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recemb.kernels.bag import pack_slots
from recemb.kernels.hashing.slots import hash_slots
from recemb.tables.bags import Bags
from recemb.tables.layout import Slot, Unit
from recemb.tables.lookup import Lookups
from recemb.tables.program import ABSENT, Buffers, Hash, Offset, may_be_absent, run_program


@dataclass(frozen=True)
class _Linear:
    """A slot whose row is id + base."""

    base: int


@dataclass(frozen=True)
class _Hashed:
    """A slot whose row is base + hash of the id."""

    base: int
    seed: int
    num_rows: int


@dataclass(frozen=True)
class _General:
    """A slot whose program is run step by step."""

    base: int


_Form = _Linear | _Hashed | _General


def _form(slot: Slot) -> _Form:
    base = slot.first_row
    steps = list(slot.lookup.program)
    while steps and isinstance(last := steps[-1], Offset):
        base += last.first
        steps.pop()
    match steps:
        case []:
            return _Linear(base)
        case [Hash(seed=seed, num_rows=num_rows, exact=0, first=None)]:
            return _Hashed(base, seed, num_rows)
    return _General(slot.first_row)


class Addresses(nn.Module):
    """Runs the address programs of a unit's lookups.

    Attributes:
        unit: the lookups.
        is_plain: whether every row is an id plus a constant.
        dtype: of rows.

    Args:
        unit: the lookups.
        buffers: what programs read.
        dtype: of rows.
        device: where ids come from.
    """

    sources: Tensor
    bases: Tensor
    seeds: Tensor
    sizes: Tensor
    is_mean: Tensor | None

    def __init__(
        self,
        unit: Unit,
        *,
        buffers: Buffers,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.unit = unit
        self._slots = unit.slots[0]
        self._forms = [_form(slot) for slot in self._slots]
        self._plan_buffers = buffers
        self.dtype = dtype
        self.is_plain = all(isinstance(form, _Linear) for form in self._forms)
        self._is_hashed = all(isinstance(form, _Hashed) for form in self._forms)
        self._has_absent = any(may_be_absent(slot.lookup.program) for slot in self._slots)
        # Whether lookup s reads the ids of feature s, so that they need not be repeated.
        self._sources = unit.sources
        self._is_direct = self._sources == tuple(range(len(unit.outputs)))
        firsts = [slot.first_row for slot in self._slots]
        self._are_disjoint = len(set(firsts)) == len(firsts)
        means = [slot.output.pooling == "mean" and unit.is_pooled for slot in self._slots]
        hashed = [f if isinstance(f, _Hashed) else _Hashed(0, 0, 1) for f in self._forms]
        # Arithmetic in 32 bits where rows fit; they are widened when they are laid out.
        last = max(slot.first_row + slot.num_rows for slot in self._slots)
        narrow = torch.int32 if last < 2**31 - 1 else torch.int64
        parts = {
            "sources": torch.tensor(unit.sources),
            "bases": torch.tensor([f.base for f in self._forms], dtype=narrow),
            "seeds": torch.tensor([f.seed for f in hashed]),
            "sizes": torch.tensor([f.num_rows for f in hashed]),
            "is_mean": torch.tensor(means) if any(means) else None,
        }
        for name, tensor in parts.items():
            moved = None if tensor is None else tensor.to(device)
            self.register_buffer(name, moved, persistent=False)

    def slots(self) -> Tensor | None:
        """Return the lookups as `recemb.kernels.bag` takes them, or None if a program is beyond it.

        Those it knows add a constant or hash.
        """
        forms = [form for form in self._forms if not isinstance(form, _General)]
        if len(forms) < len(self._forms):
            return None
        hashed = [isinstance(form, _Hashed) for form in forms]
        return pack_slots(
            self._sources,
            [form.base for form in forms],
            [
                f.num_rows if isinstance(f, _Hashed) else slot.num_rows
                for f, slot in zip(forms, self._slots, strict=True)
            ],
            [form.seed if isinstance(form, _Hashed) else 0 for form in forms],
            hashed,
            [slot.output.pooling == "mean" for slot in self._slots],
        )

    def forward(self, bags: Bags, ids: Tensor) -> Lookups:
        """Return the lookups of `ids`, which are those of `bags` after the bounds check.

        Pooled lookups of one id per bag, and no others, come example by example.
        """
        num = len(self._slots)
        if bags.offsets is None and self.unit.is_pooled and not self._has_absent:
            blocks = self._blocks(ids.view(len(bags.sizes), bags.batch_size))
            rows = torch.empty((bags.batch_size, num), dtype=self.dtype, device=ids.device)
            rows.copy_(blocks.t())
            return self._lookups(rows.view(-1), None, None, None, num * bags.batch_size)
        sizes = [bags.sizes[f] for f in self._sources]
        rows = self._flat(bags, ids, sizes)
        if not self.unit.is_pooled:
            return self._lookups(rows, None, None, None, rows.numel(), tuple(sizes))
        return self._bags(bags, rows)

    def _blocks(self, ids: Tensor) -> Tensor:
        """Return the rows (S, n) of ids (F, n)."""
        keys = ids if self._is_direct else ids[self.sources]
        bases = self.bases.unsqueeze(1)
        if self.is_plain:
            return keys.to(bases.dtype) + bases
        if self._is_hashed:
            sizes = self.sizes.unsqueeze(1)
            return hash_slots(keys.long(), self.seeds.unsqueeze(1), sizes, bases)
        return torch.stack([self._slot_rows(s, keys[s]) for s in range(len(self._slots))])

    def _flat(self, bags: Bags, ids: Tensor, sizes: list[int]) -> Tensor:
        """Return the rows (N,), lookup by lookup, `sizes` of each."""
        num = bags.sizes[0] if bags.sizes else 0
        if all(size == num for size in bags.sizes):
            return self._blocks(ids.view(len(bags.sizes), num)).to(self.dtype).reshape(-1)
        parts = torch.split(ids, bags.sizes)
        if self.is_plain and self._is_direct:
            counts = torch.tensor(sizes, device=ids.device)
            bases = self.bases.repeat_interleave(counts, output_size=ids.numel())
            return ids.to(self.dtype) + bases
        return torch.cat([self._slot_rows(s, parts[f]) for s, f in enumerate(self._sources)])

    def _slot_rows(self, s: int, ids: Tensor) -> Tensor:
        """Return the rows (n,) of the ids (n,) of lookup s, of this module's dtype."""
        form, slot = self._forms[s], self._slots[s]
        if isinstance(form, _Linear):
            return ids.to(self.dtype) + form.base
        if isinstance(form, _Hashed):
            block = ids.long().unsqueeze(0)
            seed, size, base = (t[s].view(1, 1) for t in (self.seeds, self.sizes, self.bases))
            return hash_slots(block, seed, size, base).view(-1).to(self.dtype)
        rows = run_program(slot.lookup.program, ids, self._plan_buffers).to(self.dtype)
        if not self._has_absent:
            return rows + form.base
        return torch.where(rows == ABSENT, ABSENT, rows + form.base)

    def _bags(self, bags: Bags, rows: Tensor) -> Lookups:
        """Return the lookups of bags of any length; rows that are ABSENT are left out."""
        batch_size, num = bags.batch_size, len(self._slots)
        lengths = bags.bag_lengths().view(len(bags.sizes), batch_size)
        lengths = (lengths if self._is_direct else lengths[self.sources]).reshape(-1)
        weights = bags.weights
        if weights is not None and not self._is_direct:
            parts = torch.split(weights, bags.sizes)
            weights = torch.cat([parts[f] for f in self._sources])
        if self._has_absent:
            keep = rows != ABSENT
            bag_of = torch.arange(lengths.numel(), device=rows.device).repeat_interleave(lengths)
            lengths = torch.bincount(bag_of[keep], minlength=lengths.numel())
            rows = rows[keep]
            weights = None if weights is None else weights[keep]
        offsets = torch.zeros(lengths.numel() + 1, dtype=rows.dtype, device=rows.device)
        torch.cumsum(lengths, 0, dtype=rows.dtype, out=offsets[1:])
        scales = self._scales(weights, lengths, rows.numel())
        return self._lookups(rows, offsets, lengths, scales, num * batch_size)

    def _scales(self, weights: Tensor | None, lengths: Tensor, num_ids: int) -> Tensor | None:
        weights = None if weights is None else weights.float()
        if self.is_mean is None:
            return weights
        counts = lengths.view(self.is_mean.numel(), lengths.numel() // self.is_mean.numel())
        inverse = torch.where(self.is_mean.unsqueeze(1), 1 / counts.clamp(min=1), 1.0).view(-1)
        scales = inverse.repeat_interleave(lengths, output_size=num_ids)
        return scales if weights is None else scales * weights

    def _lookups(
        self,
        rows: Tensor,
        offsets: Tensor | None,
        lengths: Tensor | None,
        scales: Tensor | None,
        num_outputs: int,
        sizes: tuple[int, ...] | None = None,
    ) -> Lookups:
        return Lookups(
            rows=rows,
            offsets=offsets,
            lengths=lengths,
            scales=scales,
            num_slots=len(self._slots),
            num_outputs=num_outputs,
            sizes=sizes,
            may_be_absent=self._has_absent and offsets is None,
            are_disjoint=self._are_disjoint,
        )
