"""From the vectors of virtual lookups to those of outputs: combine, pool, project.

Shapes: `B` examples, `S` lookups of a unit, `k` lookups of an output, `N` ids of a feature, `D` a
group's width, `W` the sum of all outputs' widths.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recemb.tables.bags import Bags
from recemb.tables.engine import Read
from recemb.tables.layout import Slot, Unit
from recemb.tables.lookup_plan import LookupPlan, Output, RowProgram
from recemb.tables.program import Buffers
from recemb.tables.row_codes import unpack
from recemb.tables.rows_split import split_rows


@dataclass(frozen=True)
class _Place:
    """Where a slot's vectors are: unit, its group, and the slot's position."""

    unit: int
    group: int
    slot: int


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Consecutive outputs whose lookups lie side by side in one block of a pooled unit.

    Attributes:
        unit: index of the unit.
        group: index of the unit's group.
        num_slots: lookups of the run.
        outputs: the outputs; they agree in how they combine, and in their number of lookups
            unless that is "concat".
    """

    unit: int
    group: int
    num_slots: int
    outputs: tuple[Output, ...]


@dataclass(frozen=True, kw_only=True)
class _Single:
    """An output whose vectors are combined by themselves.

    Attributes:
        output: the output.
        places: of its lookups, that of the importance weights last.
    """

    output: Output
    places: tuple[_Place, ...]


class Composer:
    """Makes the outputs of a plan out of what the engine read.

    Args:
        plan: the plan.
        units: those of one pass.
        widths: for each unit, the width of each of its groups.
        buffers: what row programs read.
    """

    def __init__(
        self,
        plan: LookupPlan,
        units: Sequence[Unit],
        *,
        widths: Sequence[Sequence[int]],
        buffers: Buffers,
    ) -> None:
        self._units = tuple(units)
        self._widths = widths
        self._row_programs = RowPrograms(buffers)
        self._places: dict[str, list[_Place]] = {}
        self._slots: dict[_Place, Slot] = {}
        for u, unit in enumerate(units):
            for g, slots in enumerate(unit.slots):
                for s, slot in enumerate(slots):
                    place = _Place(u, g, s)
                    self._slots[place] = slot
                    self._places.setdefault(slot.output.key, []).append(place)
        for places in self._places.values():
            places.sort(key=lambda place: self._slots[place].number)
        self._parts = self._plan_parts([o for o in plan.outputs if o.key in self._places])
        self._sizes = self._split_sizes()

    def pooled(self, read: Read, projections: Buffers) -> Tensor:
        """Return all outputs side by side (B, W), in the plan's order."""
        pieces = self._pieces(read)
        parts = [
            self._run(part, pieces[part.unit, part.group], projections)
            if isinstance(part, _Run)
            else self._single(part, read, pieces, projections)
            for part in self._parts
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def unpooled(self, read: Read, projections: Buffers) -> dict[str, Tensor]:
        """Return the vectors (N, embedding_dim) of every id of each output."""
        pieces = self._pieces(read)
        return {
            part.output.key: project(part.output, self._combined(part, read, pieces), projections)
            for part in self._parts
            if isinstance(part, _Single)
        }

    def _plan_parts(self, outputs: Sequence[Output]) -> list[_Run | _Single]:
        parts: list[_Run | _Single] = []
        end: _Place | None = None
        for output in outputs:
            places = self._places[output.key]
            if not self._units[places[0].unit].is_pooled:
                parts.append(_Single(output=output, places=tuple(places)))
                end = None
                continue
            if not _are_adjacent(places):
                parts.append(_Single(output=output, places=tuple(places)))
                end = None
                continue
            last = parts[-1] if parts else None
            if (
                isinstance(last, _Run)
                and end is not None
                and _follows(places[0], end)
                and _combine_alike(last.outputs[-1], output)
            ):
                parts[-1] = _Run(
                    unit=last.unit,
                    group=last.group,
                    num_slots=last.num_slots + len(places),
                    outputs=(*last.outputs, output),
                )
            else:
                parts.append(
                    _Run(
                        unit=places[0].unit,
                        group=places[0].group,
                        num_slots=len(places),
                        outputs=(output,),
                    )
                )
            end = places[-1]
        return parts

    def _split_sizes(self) -> dict[tuple[int, int], list[int]]:
        """Return, for each block of a pooled unit, the lookups of its pieces, in order."""
        sizes: dict[tuple[int, int], list[int]] = {}
        for part in self._parts:
            if isinstance(part, _Run):
                sizes.setdefault((part.unit, part.group), []).append(part.num_slots)
                continue
            for place in part.places:
                if self._units[place.unit].is_pooled:
                    sizes.setdefault((place.unit, place.group), []).append(1)
        return sizes

    def _pieces(self, read: Read) -> dict[tuple[int, int], list[Tensor]]:
        """Return the pieces of each block, in the order in which parts take them."""
        pieces = {}
        for u, (unit, blocks) in enumerate(zip(self._units, read.blocks, strict=True)):
            for g, block in enumerate(blocks):
                width = self._widths[u][g]
                if not unit.is_pooled:
                    found = split_rows(block, read.lookups[u].sizes or ())
                else:
                    flat = block.view(-1, read.lookups[u].num_slots * width)
                    sizes = [num * width for num in self._sizes[u, g]]
                    found = (flat,) if len(sizes) == 1 else torch.split(flat, sizes, dim=1)
                pieces[u, g] = list(found)[::-1]
        return pieces

    def _run(self, run: _Run, pieces: list[Tensor], projections: Buffers) -> Tensor:
        """Return the outputs of a run side by side."""
        piece, first = pieces.pop(), run.outputs[0]
        if first.combine != "concat":
            num, num_lookups = len(run.outputs), len(first.lookups)
            width = piece.shape[1] // (num * num_lookups)
            blocks = piece.view(piece.shape[0], num, num_lookups, width)
            piece = _fold(blocks, first.combine).flatten(1)
        return project(first, piece, projections)

    def _single(
        self,
        part: _Single,
        read: Read,
        pieces: dict[tuple[int, int], list[Tensor]],
        projections: Buffers,
    ) -> Tensor:
        vectors = self._combined(part, read, pieces)
        unit = part.places[0].unit
        if not self._units[unit].is_pooled:
            feature = self._units[unit].sources[part.places[0].slot]
            vectors = _pool(vectors, read.bags[unit], feature, part.output)
        return project(part.output, vectors, projections)

    def _combined(
        self, part: _Single, read: Read, pieces: dict[tuple[int, int], list[Tensor]]
    ) -> Tensor:
        """Return the combined rows of an output, (B, ..) or (N, ..)."""
        output, vectors = part.output, []
        for place in part.places:
            vector = pieces[place.unit, place.group].pop()
            program = self._slots[place].lookup.row
            if not program.is_identity:
                lookups = read.lookups[place.unit]
                assert lookups.sizes is not None
                rows = torch.split(lookups.rows, list(lookups.sizes))[place.slot]
                slot = self._slots[place]
                vector = self._row_programs.apply(program, vector, rows - slot.first_row)
            vectors.append(vector)
        return combine(output, vectors)


class RowPrograms:
    """Executes row programs.

    Args:
        buffers: what they read.
    """

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers

    def apply(self, program: RowProgram, vectors: Tensor, rows: Tensor) -> Tensor:
        """Return the vectors (N, D) after `program`; an absent row stays zero.

        Args:
            program: the program.
            vectors: (N, D) as read, float32; bytes of codes, if the program unpacks them.
            rows: (N,) rows of the physical table; negative for absent.
        """
        at = rows.clamp(min=0)
        if program.bits is not None and program.width is not None:
            vectors = unpack(vectors.to(torch.uint8), program.width, program.bits).float()
        if program.scale is not None:
            vectors = vectors * self._buffers[program.scale].index_select(0, at).unsqueeze(1)
        if program.bias is not None:
            bias = self._buffers[program.bias].index_select(0, at).masked_fill(rows < 0, 0)
            vectors = vectors + bias.unsqueeze(1)
        if program.threshold is not None:
            norms = vectors.norm(p=program.norm, dim=1, keepdim=True)
            vectors = vectors * (norms > program.threshold)
        if program.prefix is not None:
            is_kept = torch.arange(vectors.shape[1], device=vectors.device) < program.prefix
            vectors = vectors * is_kept
        return vectors


def combine(output: Output, vectors: Sequence[Tensor]) -> Tensor:
    """Return the combination of an output's rows.

    Args:
        output: says how.
        vectors: (N, D) of each lookup; the importance weights (N, k) last if it has some.
    """
    if output.importance is not None:
        *rows, importance = vectors
        return (torch.stack(rows, dim=1) * importance.unsqueeze(2)).sum(dim=1)
    if len(vectors) == 1:
        return vectors[0]
    if output.combine == "concat":
        return torch.cat(list(vectors), dim=1)
    if output.combine == "product":
        # By multiplications, for the derivative of torch.prod divides where a factor is not zero.
        product = vectors[0]
        for vector in vectors[1:]:
            product = product * vector
        return product
    return _fold(torch.stack(list(vectors), dim=1).unsqueeze(1), output.combine).squeeze(1)


def _fold(blocks: Tensor, how: str) -> Tensor:
    """Return the sum or mean of (B, F, k, D) over k."""
    total = blocks.sum(dim=2)
    return total / blocks.shape[2] if how == "mean" else total


def _pool(vectors: Tensor, bags: Bags, feature: int, output: Output) -> Tensor:
    """Return the pooled vectors (B, D) of the ids (N, D) of one feature of `bags`."""
    if bags.offsets is None:
        return vectors
    lengths = bags.bag_lengths().view(-1, bags.batch_size)[feature]
    weights = None
    if bags.weights is not None:
        weights = torch.split(bags.weights, bags.sizes)[feature].float()
    if output.pooling == "mean":
        inverse = (1 / lengths.clamp(min=1)).repeat_interleave(
            lengths, output_size=vectors.shape[0]
        )
        weights = inverse if weights is None else weights * inverse
    offsets = torch.zeros(bags.batch_size + 1, dtype=torch.int64, device=vectors.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    places = torch.arange(vectors.shape[0], device=vectors.device)
    return F.embedding_bag(
        places,
        vectors,
        offsets,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def project(output: Output, vectors: Tensor, projections: Buffers) -> Tensor:
    """Return the vectors times the output's projection, if it has one, and its padding."""
    if output.projection is not None:
        vectors = vectors @ projections[output.projection]
    return F.pad(vectors, (0, output.padding)) if output.padding else vectors


def _are_adjacent(places: Sequence[_Place]) -> bool:
    return all(_follows(b, a) for a, b in itertools.pairwise(places))


def _follows(place: _Place, end: _Place) -> bool:
    return place == _Place(end.unit, end.group, end.slot + 1)


def _combine_alike(a: Output, b: Output) -> bool:
    if any(o.projection is not None or o.padding for o in (a, b)) or a.combine != b.combine:
        return False
    return a.combine == "concat" or len(a.lookups) == len(b.lookups)
