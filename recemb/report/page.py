"""A page of Markdown with tables and charts, and the files that it names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recemb.checkpoint.atomic import whole_file

Value = str | int | float | None


@dataclass
class Page:
    """Lines of Markdown, and charts by file name.

    Attributes:
        lines: the page.
        charts: SVG text by the name of its file.
    """

    lines: list[str] = field(default_factory=list)
    charts: dict[str, str] = field(default_factory=dict)

    def text(self, *paragraphs: str) -> None:
        """Add paragraphs or headings."""
        for paragraph in paragraphs:
            self.lines += [paragraph, ""]

    def table(self, columns: Mapping[str, Sequence[Value]]) -> None:
        """Add a table, column by column; numbers stand to the right."""
        rows = zip(*columns.values(), strict=True)
        rule = [
            "---:" if all(isinstance(value, int | float | None) for value in its) else "---"
            for its in columns.values()
        ]
        for row in [list(columns), rule, *([_shown(value) for value in row] for row in rows)]:
            self.lines.append(f"| {' | '.join(row)} |")
        self.lines.append("")

    def chart(self, name: str, title: str, svg: str) -> None:
        """Add a chart, to be written beside the page as `name`."""
        self.charts[name] = svg
        self.text(f"![{title}]({name})")

    def write(self, folder: Path, name: str) -> None:
        """Write the page and its charts into a folder, which is made if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: "\n".join(self.lines), **self.charts}
        for file, text in files.items():
            with whole_file(folder / file) as unfinished:
                unfinished.write_text(text, encoding="utf-8")


def _shown(value: Value) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
