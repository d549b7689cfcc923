import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"


def run_snippets() -> tuple[list[str], dict[str, Any]]:
    """Run the README's Python, one snippet after the other; return them and what they defined."""
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(compile(snippet, str(README), "exec"), names)
    return snippets, names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder of its own: snippets write files."""
    monkeypatch.chdir(tmp_path)


def test_the_first_snippet_trains_in_under_twenty_lines() -> None:
    snippets, names = run_snippets()
    assert len([line for line in snippets[0].splitlines() if line.strip()]) < 20
    # Three separable examples: the loss of an untrained model is about log 2.
    assert names["loss"].item() == pytest.approx(0.0, abs=0.05)


def test_the_second_snippet_keeps_its_budget(capsys: pytest.CaptureFixture[str]) -> None:
    _, names = run_snippets()
    storage = names["small"].storage()
    assert storage.serve_bytes <= 0.05 * storage.full_bytes
    assert names["vectors"].shape == (3, 32)
    assert f"{storage.serve_bytes} of {storage.full_bytes} bytes" in capsys.readouterr().out


def test_the_third_snippet_gives_plain_torch_the_rows() -> None:
    _, names = run_snippets()
    assert names["weight"].numpy() == pytest.approx(names["rows"].astype("float32"))
    assert names["embedding"].weight.shape == (5000, 16)


def test_every_choice_in_the_table_exists() -> None:
    conf = README.parent / "conf"
    rows = re.findall(
        r"^\| `(data|model|optimizer|embedding)` \| (.*) \|$", README.read_text(), re.M
    )
    assert [group for group, _ in rows] == ["data", "model", "optimizer", "embedding"]
    for group, cell in rows:
        named = {w for quoted in re.findall(r"`([^`]+)`", cell) for w in quoted.split()}
        assert named == {path.stem for path in (conf / group).glob("*.yaml")}


def test_every_result_is_one_of_the_results() -> None:
    def rows_of(page: Path) -> list[list[str]]:
        return [
            [c.strip() for c in line.split("|")[1:-1]] for line in page.read_text().splitlines()
        ]

    section = README.read_text().split("## What it buys")[1].split("## ")[0]
    told = [line.split("|") for line in section.splitlines() if "(3)" in line and "|" in line]
    results = rows_of(README.parent / "benchmarks/results/methods_frappe.md")
    header = next(row for row in results if row[:1] == ["method"])
    columns = [header.index(c) for c in ("method", "0.5", "0.25", "0.1", "0.05")]
    columns.append(header.index("train bytes / full's"))
    found = [[row[c] for c in columns] for row in results if len(row) == len(header)]
    assert len(told) > 1
    assert all([cell.strip() for cell in row[1:-1]] in found for row in told)
