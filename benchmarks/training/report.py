"""Measurements to a table on the screen, a CSV and a Markdown file, none of it typed by hand."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rounds import Measurement, Schedule
from task import Task
from verdicts import Verdict

_PARTS = ("data", "lookup", "dense_forward", "dense_backward", "table_update", "dense_optimizer")
_MISSING = "-"


@dataclass(frozen=True, kw_only=True)
class Group:
    """All contenders on one model and one table size.

    Attributes:
        task: what was trained.
        schedule: for how long.
        facts: of the rows, see `click_data.generate`.
        measurements: one per contender.
    """

    task: Task
    schedule: Schedule
    facts: dict[str, Any]
    measurements: Sequence[Measurement]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median, 20th and 80th percentile."""
    if not values:
        return (float("nan"),) * 3
    low, middle, high = np.percentile(values, [20, 50, 80])
    return float(middle), float(low), float(high)


def rows_of(group: Group, context: dict[str, str]) -> list[dict[str, Any]]:
    """Return one flat row per contender."""
    rows = []
    for m in group.measurements:
        speed, speed_low, speed_high = spread(m.speeds)
        ratio, ratio_low, ratio_high = spread(m.ratios)
        rows.append(
            {
                "model": group.task.model,
                "rows_per_feature": group.task.num_embeddings,
                "contender": m.contender.name,
                "samples_per_second": speed,
                "samples_per_second_p20": speed_low,
                "samples_per_second_p80": speed_high,
                "ratio_to_reference": ratio,
                "ratio_p20": ratio_low,
                "ratio_p80": ratio_high,
                "peak_bytes": m.peak_bytes,
                "logloss": m.logloss,
                "samples": m.samples,
                "best_logloss": group.facts["test_best_logloss"],
                **{f"{part}_seconds": m.parts.get(part, float("nan")) for part in _PARTS},
                "rounds": group.schedule.rounds,
                "steps": group.schedule.steps,
                "batch_size": group.task.batch_size,
                "threads": group.task.num_threads,
                "seed": group.task.seed,
                "note": m.note,
                "versions": " ".join(f"{k}={v}" for k, v in m.versions.items()),
                **context,
            }
        )
    return rows


def table(group: Group) -> str:
    """Return the Markdown table of one group."""
    task, facts = group.task, group.facts
    lines = [
        f"### {task.model}, {task.num_embeddings:,} rows per feature",
        "",
        f"Batch {task.batch_size}, {task.num_threads} threads, {group.schedule.rounds} rounds of "
        f"{group.schedule.steps} steps after {group.schedule.warmup} to warm up. Held-out log loss "
        f"after {group.schedule.total_steps * task.batch_size:,} samples: the planted model itself "
        f"has {facts['test_best_logloss']:.4f}, the constant "
        f"{facts['test_logloss_of_constant']:.4f}.",
        "",
        "| | samples/s (p20 to p80) | ratio to recemb fp32 (p20 to p80) | peak GB | log loss | "
        + " | ".join(part.replace("_", " ") + " ms" for part in _PARTS)
        + " |",
        "|---" * (5 + len(_PARTS)) + "|",
    ]
    lines += [_line(m) for m in group.measurements]
    return "\n".join(lines)


def document(groups: Sequence[Group], verdicts: Sequence[Verdict], facts: dict[str, str]) -> str:
    """Return the whole Markdown page."""
    parts = [
        "# Training step against other libraries",
        "Written by `python benchmarks/training/compare.py`; do not edit. What is measured, and "
        "how: [benchmarks/README.md](../README.md).",
        "\n".join(f"- {key}: {value}" for key, value in facts.items()),
    ]
    parts += [table(group) for group in groups]
    parts.append("## Targets")
    parts.append(
        "\n".join(
            [
                "| target | required | measured (p20 to p80) | |",
                "|---|---|---|---|",
                *(verdict.line() for verdict in verdicts),
            ]
        )
    )
    parts.append("## Versions")
    seen = {m.contender.name: m.versions for g in groups for m in g.measurements if m.versions}
    parts.append(
        "\n".join(
            f"- {name}: " + ", ".join(f"{k} {v}" for k, v in versions.items())
            for name, versions in seen.items()
        )
    )
    return "\n\n".join(parts) + "\n"


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _line(m: Measurement) -> str:
    parts = " | ".join(
        f"{1e3 * m.parts[part]:.1f}" if part in m.parts else _MISSING for part in _PARTS
    )
    if not m.speeds:
        return f"| {m.contender.name} | {m.note} | {_MISSING} | {_MISSING} | {_MISSING} | {parts} |"
    speed, ratio = spread(m.speeds), spread(m.ratios)
    return (
        f"| {m.contender.name} | {speed[0]:,.0f} ({speed[1]:,.0f} to {speed[2]:,.0f}) "
        f"| {ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f}) | {m.peak_bytes / 1e9:.2f} "
        f"| {m.logloss:.4f} | {parts} |"
    )
