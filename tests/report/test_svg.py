"""Charts are well-formed SVG with what they were given."""

import math
from xml.etree import ElementTree

from recemb.report.svg import bar_chart, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def test_a_line_has_a_point_for_each_value_that_is_a_number() -> None:
    chart = ElementTree.fromstring(
        line_chart("a < b", {"one": [1.0, math.nan, 3.0], "two": [2.0, 2.0, 2.0]})
    )
    lines = chart.findall(f"{SVG}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [2, 3]
    assert len(chart.findall(f"{SVG}circle")) == 5
    assert "a < b" in [text.text for text in chart.iter(f"{SVG}text")]


def test_greater_values_are_higher() -> None:
    chart = ElementTree.fromstring(line_chart("", {"one": [0.0, 5.0]}))
    (line,) = chart.findall(f"{SVG}polyline")
    low, high = (float(point.split(",")[1]) for point in line.attrib["points"].split())
    assert high < low


def test_bars_are_as_high_as_their_values() -> None:
    chart = ElementTree.fromstring(bar_chart("", {"g": {"a": 1.0, "b": 3.0}, "h": {"a": 2.0}}))
    bars = [r for r in chart.findall(f"{SVG}rect") if r.attrib.get("width") not in ("10", "720")]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert [round(h / heights[0], 2) for h in heights] == [1, 3, 2]


def test_nothing_is_a_chart_too() -> None:
    for chart in (line_chart("", {}), line_chart("", {"a": []}), bar_chart("", {})):
        assert ElementTree.fromstring(chart).tag == f"{SVG}svg"
