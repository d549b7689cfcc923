"""Small charts as SVG text, with nothing to install.

Example:
    >>> chart = line_chart(
    ...     "Singular values", {"item": [1.0, 0.5, 0.1]}, y_label="over the greatest"
    ... )
    >>> chart.startswith("<svg") and "polyline" in chart
    True
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 200, 44, 70
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")
_TICKS = 5


def line_chart(
    title: str,
    series: Mapping[str, Sequence[float]],
    *,
    x_labels: Sequence[str] | None = None,
    x_label: str = "",
    y_label: str = "",
) -> str:
    """Return lines over the places 0, 1, ... of their values; NaN is a gap's end.

    Args:
        title: above the chart.
        series: values by name.
        x_labels: what stands under the places; their numbers by default.
        x_label: under the axis.
        y_label: beside the axis.
    """
    longest = max((len(values) for values in series.values()), default=1)
    frame = _Frame([v for values in series.values() for v in values])
    body = []
    for index, (name, values) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        points = [
            (frame.x(i / max(1, longest - 1)), frame.y(v))
            for i, v in enumerate(values)
            if math.isfinite(v)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points]
        body.append(_legend(index, name, colour))
    step = max(1, math.ceil(longest / 12))
    names = x_labels or [str(i + 1) for i in range(longest)]
    ticks = [
        _text(frame.x(i / max(1, longest - 1)), _HEIGHT - _BOTTOM + 16, names[i])
        for i in range(0, longest, step)
    ]
    return _page(title, [*frame.axes(), *ticks, *body], x_label, y_label)


def bar_chart(title: str, groups: Mapping[str, Mapping[str, float]], *, y_label: str = "") -> str:
    """Return groups of bars, a bar for each name in each group.

    Args:
        title: above the chart.
        groups: values by name, by group.
        y_label: beside the axis.
    """
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    frame = _Frame([0.0, *(v for bars in groups.values() for v in bars.values())])
    slot = 1 / max(1, len(groups))
    width = (_WIDTH - _LEFT - _RIGHT) * slot * 0.8 / max(1, len(names))
    body = []
    for g, (group, bars) in enumerate(groups.items()):
        middle = frame.x((g + 0.5) * slot)
        body.append(_text(middle, _HEIGHT - _BOTTOM + 16, group))
        for name, value in bars.items():
            index = names.index(name)
            left = middle + width * (index - len(names) / 2)
            top, base = sorted((frame.y(value), frame.y(0.0)))
            colour = _COLOURS[index % len(_COLOURS)]
            body.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{width * 0.95:.1f}" '
                f'height="{base - top:.1f}" fill="{colour}"/>'
            )
    legend = [_legend(i, name, _COLOURS[i % len(_COLOURS)]) for i, name in enumerate(names)]
    return _page(title, [*frame.axes(), *body, *legend], "", y_label)


class _Frame:
    """The axes: from the values' range to pixels."""

    def __init__(self, values: Sequence[float]) -> None:
        finite = [v for v in values if math.isfinite(v)] or [0.0]
        low, high = min(0.0, min(finite)), max(finite)
        step = _step((high - low) or 1.0)
        self.low = math.floor(low / step) * step
        self.high = max(math.ceil(high / step) * step, self.low + step)
        self.step = step

    def x(self, share: float) -> float:
        """Return the pixel of a share, 0 to 1, of the width."""
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self) -> list[str]:
        """Return horizontal lines with their values."""
        lines = []
        for i in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + i * self.step
            y = self.y(value)
            lines.append(
                f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" '
                'stroke="#ddd"/>'
            )
            lines.append(_text(_LEFT - 8, y + 4, f"{value:.4g}", anchor="end"))
        return lines


def _step(span: float) -> float:
    """Return a round distance of ticks: 1, 2 or 5 times a power of ten."""
    raw = span / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'font-family="sans-serif">{escape(text)}</text>'
    )


def _legend(index: int, name: str, colour: str) -> str:
    x, y = _WIDTH - _RIGHT + 14, _TOP + 6 + 18 * index
    return (
        f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/>'
        f"{_text(x + 16, y + 9, name, anchor='start')}"
    )


def _page(title: str, body: Sequence[str], x_label: str, y_label: str) -> str:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'width="{_WIDTH}" height="{_HEIGHT}">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            _text(_LEFT, 24, title, anchor="start", size=15),
            *body,
            _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 24, x_label),
            f'<g transform="translate(16 {middle:.0f}) rotate(-90)">{_text(0, 0, y_label)}</g>',
            "</svg>",
            "",
        ]
    )
