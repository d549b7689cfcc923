"""Whether the rows keep the bounds of the issue: met, not met or not measured, with the figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One bound.

    Attributes:
        bound: in words.
        limit: the number that must be kept.
        verdict: "met", "not met" or "not measured".
        figure: the worst one measured; None if nothing was.
        where: the case of the worst figure, or why there is none.
    """

    bound: str
    limit: float
    verdict: str
    figure: float | None
    where: str


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Return one verdict per bound; a bound is met only if its worst row keeps it.

    A kernel of ours that is wrong or fails in any case keeps no bound of its own.

    Where a kernel's own time is meant, replayed graphs are judged, for an eager launch hides it.
    The shares of the ceiling count each distinct row once, from tables of 4 million rows, so that
    neither the cache nor ids that repeat help.
    """
    lookup, probes, search = (
        _broken(rows, name) for name in ("recemb", "multi-probe fused", "search fused")
    )
    return [
        _worst("forward, 256-byte rows from DRAM, share of the copy ceiling", 0.75,
               _shares(rows, 256), lookup),
        _worst("forward, 512-byte rows from DRAM, share of the copy ceiling", 0.85,
               _shares(rows, 512), lookup),
        _worst("hashing in the kernel, time over that without", 1.05,
               _hash_ratios(rows), lookup, at_least=False),
        _worst("multi-probe lookup, times faster than hashing in torch first", 2.0,
               _pair_ratios(rows, "multi-probe"), probes),
        _worst("backward+update, times faster than FBGEMM", 1.0,
               _ratios(rows, "fbgemm", "backward+update", "eager"), lookup),
        _worst("DARE search, times faster than the unfused form", 3.0,
               _pair_ratios(rows, "search"), search),
    ]  # fmt: skip


def _worst(
    bound: str,
    limit: float,
    figures: Sequence[tuple[float, str]],
    broken: str,
    *,
    at_least: bool = True,
) -> Verdict:
    if broken:
        return Verdict(bound=bound, limit=limit, verdict="not met", figure=None, where=broken)
    if not figures:
        return Verdict(bound=bound, limit=limit, verdict="not measured", figure=None,
                       where="no row that could tell")  # fmt: skip
    choose: Callable[..., tuple[float, str]] = min if at_least else max
    figure, where = choose(figures, key=lambda pair: pair[0])
    kept = figure >= limit if at_least else figure <= limit
    missed = sum((f < limit) if at_least else (f > limit) for f, _ in figures)
    return Verdict(
        bound=bound,
        limit=limit,
        verdict="met" if kept else "not met",
        figure=round(figure, 3),
        where=f"{where}; {len(figures) - missed} of {len(figures)} rows keep it",
    )


def _broken(rows: Sequence[Row], contender: str) -> str:
    """Return the first case in which `contender` was wrong or failed, and how; empty if none."""
    for row in rows:
        note = str(row.get("note", ""))
        if row["contender"] == contender and note.startswith(("wrong", "failed")):
            return f"{row['case']}: {note}"
    return ""


def _times(rows: Sequence[Row], contender: str, operation: str, launch: str) -> dict[str, Row]:
    return {
        row["case"]: row
        for row in rows
        if (row["contender"], row.get("operation"), row.get("launch"))
        == (contender, operation, launch)
        and isinstance(row.get("milliseconds"), float)
    }


def _shares(rows: Sequence[Row], row_bytes: int) -> list[tuple[float, str]]:
    ours = _times(rows, "recemb", "forward", "graph")
    return [
        (row["copy_share"], case)
        for case, row in ours.items()
        if row["is_dram"] and row["row_bytes"] == row_bytes
    ]


def _hash_ratios(rows: Sequence[Row]) -> list[tuple[float, str]]:
    ours = _times(rows, "recemb", "forward", "graph")
    found = []
    for case, row in ours.items():
        plain = ours.get(case.replace(" hash ", " plain "))
        if " hash " in case and plain is not None:
            found.append((row["milliseconds"] / plain["milliseconds"], case))
    return found


def _ratios(
    rows: Sequence[Row], other: str, operation: str, launch: str, ours: str = "recemb"
) -> list[tuple[float, str]]:
    mine, theirs = (_times(rows, name, operation, launch) for name in (ours, other))
    return [
        (theirs[case]["milliseconds"] / row["milliseconds"], case)
        for case, row in mine.items()
        if case in theirs
    ]


def _pair_ratios(rows: Sequence[Row], name: str) -> list[tuple[float, str]]:
    """Prefer graphs; where the unfused form could not be captured, take eager launches."""
    for launch in ("graph", "eager"):
        found = _ratios(rows, f"{name} unfused", "forward", launch, ours=f"{name} fused")
        if found:
            return found
    return []
