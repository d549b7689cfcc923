"""Which rows have how many bits, the bytes that follow, and the choice that a budget holds.

Shapes: `n` rows of a table, `G` frequency groups, `C` numbers of bits.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.kernels.code_bag import row_bytes
from recemb.methods.mixed_rows import MixedForm
from recemb.methods.quantised_rows import QuantisedForm
from recemb.tables.full import full_plan
from recemb.tables.layout import Group, group_tables
from recemb.tables.method import IdCounts
from recemb.tables.spec import TableSpec

NARROW_BITS = 8
"""Of rows of width 1, which take a byte whatever their bits."""


@dataclass(frozen=True, kw_only=True)
class MixedLayout:
    """The bits of each row of some tables.

    Attributes:
        specs: the tables.
        bits: the numbers of bits, ascending, C of them.
        classes: by table, of width above 1, which of `bits` a row has: (n,) uint8, on the CPU.
    """

    specs: Sequence[TableSpec]
    bits: tuple[int, ...]
    classes: Mapping[str, Tensor]

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """Return the groups of tables of one width, as they lie in memory."""
        return group_tables(full_plan(self.specs))

    def classes_of(self, group: Group) -> Tensor:
        """Return which of `bits` each row of a group's buffer has."""
        return torch.cat([self.classes[table.name] for table in group.tables])

    @functools.cached_property
    def mixed(self) -> dict[str, MixedForm]:
        """Return the serving form of each group of width above 1, by its name."""
        found = {}
        for group in self.groups:
            if group.width > 1:
                counts = torch.bincount(self.classes_of(group), minlength=len(self.bits))
                found[group.name] = _form(group, self.bits, counts.tolist())
        return found

    @functools.cached_property
    def narrow(self) -> dict[str, QuantisedForm]:
        """Return the serving form of each table of width 1, by its name."""
        return {
            spec.name: QuantisedForm(num_rows=spec.num_embeddings, width=1, bits=NARROW_BITS)
            for spec in self.specs
            if spec.embedding_dim == 1
        }

    @property
    def forms(self) -> dict[str, MixedForm | QuantisedForm]:
        """Return the serving forms of all tables."""
        return {**self.mixed, **self.narrow}

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all tables in serving."""
        return sum(form.num_bytes for form in self.forms.values())


def _form(group: Group, bits: Sequence[int], counts: Sequence[int]) -> MixedForm:
    return MixedForm(
        num_rows={table.name: table.num_rows for table in group.tables},
        width=group.width,
        bits=tuple(bits),
        counts=tuple(counts),
    )


def even_layout(
    specs: Sequence[TableSpec], stats: IdCounts, bits: Sequence[int], allowed_bytes: int | None
) -> MixedLayout:
    """Return the layout of the most bits within `allowed_bytes`, the same for all rows but for one.

    What is left over after all rows have b bits goes to the most frequent ids, which get the next
    larger number of bits. The bytes do not depend on which ids are frequent.

    Args:
        specs: the tables.
        stats: how often ids occur, by feature; may be empty, then first ids come first.
        bits: the numbers of bits, ascending.
        allowed_bytes: None for the most bits.

    Returns:
        That of the fewest bits if nothing fits.
    """
    wide = [spec for spec in specs if spec.embedding_dim > 1]

    def layout(classes: Mapping[str, Tensor]) -> MixedLayout:
        return MixedLayout(specs=tuple(specs), bits=tuple(bits), classes=classes)

    def uniform(place: int) -> MixedLayout:
        rows = {spec.name: spec.num_embeddings for spec in wide}
        return layout(
            {name: torch.full((num,), place, dtype=torch.uint8) for name, num in rows.items()}
        )

    most = len(bits) - 1
    if allowed_bytes is None:
        return uniform(most)
    place = 0
    while place < most and uniform(place + 1).num_bytes <= allowed_bytes:
        place += 1
    base = uniform(place)
    spare = allowed_bytes - base.num_bytes
    if place == most or spare <= 0 or not wide:
        return base
    widths = [spec.embedding_dim for spec in wide]
    costs = [row_bytes(d, bits[place + 1]) - row_bytes(d, bits[place]) for d in widths]
    sizes = [spec.num_embeddings for spec in wide]
    order = torch.argsort(_counts(wide, stats), descending=True, stable=True)
    cost = torch.tensor(costs).repeat_interleave(torch.tensor(sizes))[order]
    num = int(torch.searchsorted(cost.cumsum(0), spare, right=True))
    classes = torch.full((sum(sizes),), place, dtype=torch.uint8)
    classes[order[:num]] = place + 1
    parts = torch.split(classes, sizes)
    return layout({spec.name: part for spec, part in zip(wide, parts, strict=True)})


def learned_layout(
    specs: Sequence[TableSpec],
    bits: Sequence[int],
    *,
    groups: Mapping[str, Tensor],
    probabilities: Mapping[str, Tensor],
    allowed_bytes: int | None,
) -> MixedLayout:
    """Return for each frequency group the largest number of bits that is probable enough.

    That is, at least 1 / (2 C). Where this takes more than `allowed_bytes`, what is enough rises
    just so far that it does not, at most until each group has its most probable number; then, of
    the groups of the most bits the rarest gets the next smaller number, and so on. Of groups that
    are lowered together the rarest go first, and the others only if they must.

    Args:
        specs: the tables.
        bits: the numbers of bits, ascending.
        groups: (n,) the frequency group of each id, the most frequent first, by table.
        probabilities: (G, C) by the name of the tables' group of one width.
        allowed_bytes: None for no limit.

    Returns:
        All rows with the fewest bits if nothing fits.
    """
    empty = MixedLayout(specs=tuple(specs), bits=tuple(bits), classes={})
    sizes = {
        group.name: torch.bincount(
            torch.cat([groups[t.name] for t in group.tables]), minlength=its.shape[0]
        )
        for group in empty.groups
        if (its := probabilities.get(group.name)) is not None
    }
    narrow = sum(form.num_bytes for form in empty.narrow.values())

    def num_bytes(classes: Mapping[str, Tensor]) -> int:
        total = narrow
        for group in empty.groups:
            if group.name in sizes:
                counts = torch.zeros(len(bits), dtype=torch.int64)
                counts.index_add_(0, classes[group.name], sizes[group.name])
                total += _form(group, bits, counts.tolist()).num_bytes
        return total

    chosen = _within(probabilities, 1 / (2 * len(bits)), num_bytes, allowed_bytes)
    classes = {
        table.name: chosen[group.name].to(torch.uint8)[groups[table.name].long()]
        for group in empty.groups
        if group.name in chosen
        for table in group.tables
    }
    return MixedLayout(specs=tuple(specs), bits=tuple(bits), classes=classes)


def _within(
    probabilities: Mapping[str, Tensor],
    least: float,
    num_bytes: Callable[[Mapping[str, Tensor]], int],
    allowed_bytes: int | None,
) -> dict[str, Tensor]:
    """Return the class (G,) of each frequency group, by the name of the tables' group."""
    chosen = _classes(probabilities, least)
    if allowed_bytes is None or num_bytes(chosen) <= allowed_bytes:
        return chosen
    found = torch.unique(torch.cat([p.flatten() for p in probabilities.values()]))
    levels = [least, *found[found > least].tolist()]
    low, high = 0, len(levels)  # levels[low] is too small.
    while high - low > 1:
        middle = (low + high) // 2
        fits = num_bytes(_classes(probabilities, levels[middle])) <= allowed_bytes
        low, high = (low, middle) if fits else (middle, high)
    chosen = _classes(probabilities, levels[low])
    lowered = None if high == len(levels) else _classes(probabilities, levels[high])
    while num_bytes(chosen) > allowed_bytes:
        place = _next(chosen, lowered)
        if place is None:
            break
        name, group = place
        chosen[name][group] = chosen[name][group] - 1 if lowered is None else lowered[name][group]
    return chosen


def _next(
    chosen: Mapping[str, Tensor], lowered: Mapping[str, Tensor] | None
) -> tuple[str, int] | None:
    """Return the rarest frequency group, and its tables, of those to be lowered; None if none is.

    They are those that differ from `lowered`, or those of the most bits if that is None.
    """
    most = max(int(classes.max()) for classes in chosen.values()) if chosen else 0
    found: list[tuple[int, str]] = []
    for name, classes in chosen.items():
        if lowered is not None:
            groups = (classes != lowered[name]).nonzero()
        else:
            groups = ((classes == most) & (classes > 0)).nonzero()
        if groups.numel():
            found.append((int(groups.max()), name))
    if not found:
        return None
    group, name = max(found)
    return name, group


def _classes(probabilities: Mapping[str, Tensor], least: float) -> dict[str, Tensor]:
    """Return the last class (G,) that is at least so probable; the most probable if none is."""
    found = {}
    for name, its in probabilities.items():
        places = torch.arange(its.shape[1]).expand(its.shape)
        enough = its >= torch.clamp(its.amax(dim=1, keepdim=True), max=least)
        found[name] = torch.where(enough, places, 0).amax(dim=1)
    return found


def _counts(specs: Sequence[TableSpec], stats: IdCounts) -> Tensor:
    """Return how often the ids of all tables occur, one table after the other; 0 if not known."""
    return torch.cat([id_counts(spec, stats) for spec in specs])


def id_counts(spec: TableSpec, stats: IdCounts) -> Tensor:
    """Return how often each id of a table occurs, (n,) int64; 0 where that is not known."""
    total = torch.zeros(spec.num_embeddings, dtype=torch.int64)
    for feature in spec.feature_names:
        if feature in stats:
            total += stats[feature]
    return total
