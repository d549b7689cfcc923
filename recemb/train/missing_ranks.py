"""Which rank is to blame when a collective has failed, in words."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

WAITED = "waited for another rank"
"""The end of a rank that a collective's failure stopped."""
_WAY_OUT = "Every rank stops; the same command goes on from the newest checkpoint"
NO_STORE = (
    "the store through which the ranks speak of each other is gone or does not answer: rank 0 "
    "(with torchrun: the torchrun of the first machine), which keeps it, has ended, stands still "
    f"or cannot be reached; its own output may say why. {_WAY_OUT}"
)
"""What a rank can say that has lost the others and the store."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What a rank has said of itself.

    Attributes:
        beats: how often it has said that it lives; None if it has never come.
        place: its process and machine.
        step: the last update that it made, "" before any.
        end: why it stopped; "" if it has not said so.
    """

    beats: int | None
    place: str = ""
    step: str = ""
    end: str = ""

    @property
    def has_failed(self) -> bool:
        """Return whether it stopped for a reason of its own."""
        return bool(self.end) and self.end != WAITED


def is_explained(signs: Mapping[int, Sign]) -> bool:
    """Return whether nothing more can be learnt: a rank has failed, or all have said their end."""
    return any(its.has_failed for its in signs.values()) or all(its.end for its in signs.values())


def describe(signs: Mapping[int, Sign], *, dead: Set[int], timeout_seconds: float) -> str:
    """Return which ranks are to blame, how far each had come, and what to do.

    Those that failed by themselves; if none did, those that are gone; if none is, those that live
    and have not come. The others are their victims.

    Args:
        signs: of all ranks.
        dead: ranks that gave no sign of life while one listened.
        timeout_seconds: how long a collective waits.
    """
    failed = {r: f"stopped: {its.end}" for r, its in signs.items() if its.has_failed}
    gone = dict.fromkeys(sorted(dead), "gives no sign of life")
    silent = {
        r: f"lives, but did not answer within {timeout_seconds:g} seconds (timeout_seconds)"
        for r, its in signs.items()
        if not its.end and r not in dead
    }
    to_blame = failed or gone or silent
    said = [f"rank {r} ({signs[r].place or 'never seen'}) {what}" for r, what in to_blame.items()]
    if not said:
        said = ["all ranks live and waited for each other: a connection broke, or one was late"]
    # Where nobody is to blame, one may have come after another had given up.
    slow = ", and a higher timeout_seconds if it was only slow" if to_blame is silent else ""
    return f"{'; '.join(said)}. Last heard of: {_steps(signs)}. {_WAY_OUT}{slow}"


def _steps(signs: Mapping[int, Sign]) -> str:
    """Return how far each rank had come."""
    ranks_at: dict[str, list[int]] = {}
    for rank, its in signs.items():
        ranks_at.setdefault(its.step, []).append(rank)
    parts = []
    for step, ranks in ranks_at.items():
        who = f"rank{'s' if len(ranks) > 1 else ''} {_ranges(ranks)}"
        parts.append(f"{who} {f'after update {step}' if step else 'before an update'}")
    return ", ".join(parts)


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers in few words: `0, 2-5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
