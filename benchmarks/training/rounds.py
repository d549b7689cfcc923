"""Interleaved rounds: in each, every contender of a wave trains a few steps, one after the other.

Noise of the machine then hits all of them alike, and ratios are taken within a round. Contenders
whose tables do not fit into memory together are spread over waves; the reference runs in every
wave, and each contender's speed is divided by the reference's in the same round of its own wave.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from session import Contender, Session
from task import EMBEDDING_DIM, NUM_FEATURES, Task

_BASE_BYTES = 1_000_000_000
_MEMORY_SHARE = 0.85


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to measure.

    Attributes:
        warmup: steps before the first round, which are trained but not counted.
        rounds: number of rounds.
        steps: steps of each contender in a round.
    """

    warmup: int
    rounds: int
    steps: int

    @property
    def total_steps(self) -> int:
        """Return the steps that each contender has trained at the end."""
        return self.warmup + self.rounds * self.steps


@dataclass(kw_only=True)
class Measurement:
    """What one contender did.

    Attributes:
        contender: who.
        speeds: samples per second of each round.
        ratios: each of `speeds` over the reference's of the same round.
        peak_bytes: largest resident memory of its process.
        logloss: on the held-out rows, after the same samples as everyone.
        samples: how many those are.
        parts: seconds per step of each part; recemb only.
        versions: of its packages.
        note: why there is no measurement; empty if there is one.
    """

    contender: Contender
    speeds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    logloss: float = float("nan")
    samples: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    note: str = ""


def measure(
    wave: Sequence[Contender],
    reference: Contender,
    task: Task,
    schedule: Schedule,
    pythons: dict[str, Path],
    log: Path,
) -> list[Measurement]:
    """Return what the contenders of one wave did; `reference` is one of them."""
    with contextlib.ExitStack() as stack:
        found: list[Measurement] = []
        sessions: list[Session] = []
        for contender in wave:
            session = stack.enter_context(Session(contender, pythons[contender.name], task, log))
            session.ask(do="steps", n=schedule.warmup)
            sessions.append(session)
            found.append(Measurement(contender=contender, versions=session.versions))
        for number in range(schedule.rounds):
            for position in range(len(wave)):
                # Rotated, so that nobody always follows the same neighbour's use of the caches.
                index = (position + number) % len(wave)
                answer = sessions[index].ask(do="steps", n=schedule.steps)
                speed = schedule.steps * task.batch_size / answer["seconds"]
                found[index].speeds.append(speed)
                found[index].peak_bytes = answer["peak_bytes"]
            print(f"    round {number + 1}/{schedule.rounds}: " + _latest(found), flush=True)
        for session, result in zip(sessions, found, strict=True):
            answer = session.ask(do="evaluate")
            result.logloss, result.samples = answer["logloss"], answer["samples"]
            if result.contender.is_ours:
                result.parts = session.ask(do="parts", n=schedule.steps)["seconds"]
    base = next(m for m in found if m.contender == reference)
    for result in found:
        result.ratios = [a / b for a, b in zip(result.speeds, base.speeds, strict=True)]
    return found


def waves(
    contenders: Sequence[Contender], reference: Contender, task: Task
) -> list[list[Contender]]:
    """Return the contenders in groups that fit into memory, each led by `reference`.

    Raises:
        MemoryError: if one contender does not even fit beside the reference.
    """
    limit = _MEMORY_SHARE * available_bytes()
    found = [[reference]]
    used = [expected_bytes(reference, task)]
    for contender in contenders:
        if contender == reference:
            continue
        needed = expected_bytes(contender, task)
        for index, _ in enumerate(found):
            if used[index] + needed <= limit:
                found[index].append(contender)
                used[index] += needed
                break
        else:
            if expected_bytes(reference, task) + needed > limit:
                raise MemoryError(
                    f"'{contender.name}' with {task.num_embeddings} rows per feature needs about "
                    f"{needed / 1e9:.1f} GB beside the reference; leave it out with --skip"
                )
            found.append([reference, contender])
            used.append(expected_bytes(reference, task) + needed)
    return found


def expected_bytes(contender: Contender, task: Task) -> float:
    """Return a generous estimate of the memory that a contender takes."""
    width = EMBEDDING_DIM + (task.model == "deepfm")
    tables = 4 * NUM_FEATURES * task.num_embeddings * width
    return _BASE_BYTES + contender.copies * tables


def available_bytes() -> int:
    """Return the memory that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no MemAvailable in /proc/meminfo")


def _latest(found: Sequence[Measurement]) -> str:
    return ", ".join(f"{m.contender.name} {m.speeds[-1]:,.0f}/s" for m in found)
