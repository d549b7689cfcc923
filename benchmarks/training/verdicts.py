"""The targets that recemb sets itself, judged by the measurements."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rounds import Measurement

_FP32 = ("recemb fp32", "recemb fp32 compiled")
_BF16 = "recemb bf16 compiled"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One target.

    Attributes:
        target: in words.
        required: the bound on the figure.
        is_lower_better: whether the figure must be below the bound.
        values: one figure per round; empty if not measured.
        note: why not.
    """

    target: str
    required: float
    values: Sequence[float]
    is_lower_better: bool = False
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Return whether the median keeps the bound; None if there is no measurement."""
        if not self.values:
            return None
        middle = float(np.median(self.values))
        return middle < self.required if self.is_lower_better else middle >= self.required

    def line(self) -> str:
        """Return a row of a Markdown table."""
        sign = "below" if self.is_lower_better else "at least"
        if not self.values:
            return f"| {self.target} | {sign} {self.required:g} | {self.note} | not measured |"
        low, middle, high = np.percentile(self.values, [20, 50, 80])
        word = "met" if self.is_met else "NOT met"
        return (
            f"| {self.target} | {sign} {self.required:g} | {middle:.2f} ({low:.2f} to {high:.2f}) "
            f"| {word} |"
        )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, a table size, and what was measured there.

    Attributes:
        model: name of the model.
        num_embeddings: rows of each feature's table.
        batch_size: examples of a step.
        found: one measurement per contender.
    """

    model: str
    num_embeddings: int
    batch_size: int
    found: Sequence[Measurement]

    @property
    def title(self) -> str:
        """Return the case in words."""
        return f"{self.model}, {self.num_embeddings:,} rows per feature"


def judge(case: Case) -> list[Verdict]:
    """Return the targets of one case."""
    measured = {m.contender.name: m for m in case.found if m.ratios}
    peers = [m for m in measured.values() if not m.contender.is_ours]
    ours = [measured[name] for name in _FP32 if name in measured]
    verdicts = []
    if peers and ours:
        verdicts.append(_over_fastest(case, max(ours, key=_ratio), peers, 1.0))
    verdicts += _bf16(case, measured, peers)
    verdicts += [
        Verdict(
            target=f"{case.title}: making a batch, over a step of {m.contender.name}",
            required=0.05,
            values=[m.parts["data"] * float(np.median(m.speeds)) / case.batch_size],
            is_lower_better=True,
        )
        for m in ours
    ]
    return verdicts


def _bf16(
    case: Case, measured: dict[str, Measurement], peers: Sequence[Measurement]
) -> list[Verdict]:
    ours = measured.get(_BF16)
    note = next((m.note for m in case.found if m.contender.name == _BF16), "left out")
    if case.model == "dlrm":
        return [_over_fastest(case, ours, peers, 2.2, note)]
    fuxictr = measured.get("FuxiCTR")
    is_large = case.num_embeddings >= 1_000_000
    verdicts = [
        Verdict(
            target=f"{case.title}: {_BF16} over FuxiCTR",
            required=10 if is_large else 3.5,
            values=_over(ours, fuxictr),
            note=note,
        )
    ]
    if is_large:
        peaks = [] if ours is None or fuxictr is None else [ours.peak_bytes / fuxictr.peak_bytes]
        verdicts.append(
            Verdict(
                target=f"{case.title}: peak memory of {_BF16} over FuxiCTR's",
                required=0.5,
                values=peaks,
                is_lower_better=True,
                note=note,
            )
        )
    else:
        verdicts.append(_over_fastest(case, ours, peers, 1.8, note))
    return verdicts


def _over_fastest(
    case: Case,
    ours: Measurement | None,
    peers: Sequence[Measurement],
    required: float,
    note: str = "",
) -> Verdict:
    fastest = max(peers, key=_ratio, default=None)
    name = _BF16 if ours is None else ours.contender.name
    peer = "no peer measured" if fastest is None else fastest.contender.name
    return Verdict(
        target=f"{case.title}: {name} over the fastest peer ({peer})",
        required=required,
        values=_over(ours, fastest),
        note=note or "no peer was measured",
    )


def _over(ours: Measurement | None, peer: Measurement | None) -> list[float]:
    """Return our speed over a peer's, round by round, each relative to the reference's."""
    if ours is None or peer is None:
        return []
    return [a / b for a, b in zip(ours.ratios, peer.ratios, strict=True)]


def _ratio(m: Measurement) -> float:
    return float(np.median(m.ratios))
