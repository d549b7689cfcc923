"""Which ids share rows: within a feature, and between features.

A collision within a feature merges two values for good. One between features does not have to: each
feature is read through weights of its own, which can tell the two apart (Coleman et al., "Unified
Embedding", NeurIPS 2023, section 4). So the two are counted apart.

Shapes: `N` ids of a feature, `M` rows of a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.tables.lookup_plan import LookupPlan, Output, VirtualLookup
from recemb.tables.program import ABSENT, Buffers, Hash, Offset, run_program


@dataclass(frozen=True, kw_only=True)
class LookupCollisions:
    """The collisions of one lookup of one output; means are over the output's ids.

    Attributes:
        key: the output.
        number: which of its lookups.
        table: the physical table.
        num_ids: N.
        num_rows: M.
        intra: other ids of the same output, in this lookup, in an id's row; the mean.
        inter: lookups of other features in an id's row; the mean.
        own_row: share of the ids whose row no other id reads, of whatever feature.
        expected_intra: of `intra`, for uniform hashing; None if the address is no hash.
        expected_inter: of `inter`, likewise.
    """

    key: str
    number: int
    table: str
    num_ids: int
    num_rows: int
    intra: float
    inter: float
    own_row: float
    expected_intra: float | None
    expected_inter: float | None


@dataclass(frozen=True, kw_only=True)
class VectorCollisions:
    """Ids of one output that are told apart by none of its lookups.

    Attributes:
        key: the output.
        num_ids: N.
        num_vectors: distinct combinations of rows among them.
        merged: share of the ids that have the rows of another one.
    """

    key: str
    num_ids: int
    num_vectors: int
    merged: float


def lookup_collisions(
    plan: LookupPlan, *, buffers: Buffers, ids: Mapping[str, Tensor] | None = None
) -> list[LookupCollisions]:
    """Count the collisions of every lookup of a plan.

    Lookups of one feature in one table by several outputs count once. The expectations are
    (N - 1) / m within a feature and n / m between features, where m is the number of rows that are
    hashed to and n the number of the others' ids that are hashed to the same rows.

    Args:
        plan: the plan.
        buffers: what its programs read, as `PlannedTables.plan_buffers`.
        ids: for each output, the ids (N,) to count; every id of the output by default.

    Raises:
        ValueError: if an output takes any int64 and `ids` has none for it.
    """
    reads: dict[str, list[tuple[Output, int, Tensor]]] = {}
    for output in _one_of_each(plan):
        chosen = _ids_of(output, ids)
        for number, lookup in enumerate(output.lookups):
            rows = run_program(lookup.program, chosen, buffers)
            reads.setdefault(lookup.table, []).append((output, number, rows))
    found = []
    for table in plan.tables:
        entries = reads.get(table.name, [])
        totals = torch.zeros(table.num_rows, dtype=torch.int64)
        by_feature: dict[str, Tensor] = {}
        for output, _, rows in entries:
            counts = torch.bincount(rows[rows != ABSENT], minlength=table.num_rows)
            totals += counts
            mine = by_feature.setdefault(output.feature, torch.zeros_like(totals))
            mine += counts
        for output, number, rows in entries:
            lookup = output.lookups[number]
            kept = rows[rows != ABSENT]
            own = torch.bincount(kept, minlength=table.num_rows)
            others = totals - by_feature[output.feature]
            intra, inter = _expected(lookup, output, entries)
            found.append(
                LookupCollisions(
                    key=output.key,
                    number=number,
                    table=table.name,
                    num_ids=rows.numel(),
                    num_rows=table.num_rows,
                    intra=_mean((own - 1)[kept]),
                    inter=_mean(others[kept]),
                    own_row=_mean(totals[kept] == 1),
                    expected_intra=intra,
                    expected_inter=inter,
                )
            )
    return found


def vector_collisions(
    plan: LookupPlan, *, buffers: Buffers, ids: Mapping[str, Tensor] | None = None
) -> list[VectorCollisions]:
    """Count, for each output, the ids that share all of their rows with another id.

    Args:
        plan: the plan.
        buffers: what its programs read.
        ids: as for `lookup_collisions`.

    Raises:
        ValueError: as `lookup_collisions`.
    """
    found = []
    for output in plan.outputs:
        chosen = _ids_of(output, ids)
        rows = torch.stack(
            [run_program(lookup.program, chosen, buffers) for lookup in output.lookups], dim=1
        )
        _, which, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
        found.append(
            VectorCollisions(
                key=output.key,
                num_ids=chosen.numel(),
                num_vectors=counts.numel(),
                merged=_mean(counts[which] > 1),
            )
        )
    return found


def _one_of_each(plan: LookupPlan) -> list[Output]:
    """Return the outputs, one of those that read the same rows of the same feature."""
    seen: dict[object, Output] = {}
    for output in plan.outputs:
        seen.setdefault((output.feature, output.lookups), output)
    return list(seen.values())


def _ids_of(output: Output, ids: Mapping[str, Tensor] | None) -> Tensor:
    if ids is not None and output.key in ids:
        distinct: Tensor = torch.unique(ids[output.key])
        return distinct
    if output.num_ids is None:
        raise ValueError(
            f"collisions: output '{output.key}' takes any int64, so its ids cannot be listed; pass "
            f"those to count as ids['{output.key}']"
        )
    return torch.arange(output.num_ids)


def _expected(
    lookup: VirtualLookup, output: Output, entries: list[tuple[Output, int, Tensor]]
) -> tuple[float | None, float | None]:
    """Return the expected colliders of an id, within its feature and between features."""
    place = _hashed_place(lookup)
    if place is None:
        return None, None
    num_rows = place[1]
    own = next(r.numel() for o, _, r in entries if o is output)
    others = [
        rows.numel()
        for o, number, rows in entries
        if o.feature != output.feature and _hashed_place(o.lookups[number]) == place
    ]
    return (own - 1) / num_rows, sum(others) / num_rows


def _hashed_place(lookup: VirtualLookup) -> tuple[int, int] | None:
    """Return the first of the rows that a lookup hashes to, and their number; None if it does not.

    Ids that keep rows of their own make the share that is hashed unknown, so these have none.
    """
    match lookup.program:
        case (Hash(num_rows=num_rows, exact=0, first=None),):
            return 0, num_rows
        case (Hash(num_rows=num_rows, exact=0, first=None), Offset(first=first)):
            return first, num_rows
    return None


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if values.numel() else 0.0
