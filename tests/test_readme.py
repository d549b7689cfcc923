import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_the_snippet_trains_in_under_twenty_lines() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    lines = [line for line in snippet.splitlines() if line.strip()]
    assert len(lines) < 20
    names: dict[str, Any] = {}
    exec(compile(snippet, str(README), "exec"), names)
    loss = names["loss"]
    # Three separable examples: the loss of an untrained model is about log 2.
    assert loss.item() == pytest.approx(0.0, abs=0.05)


def test_every_choice_in_the_table_exists() -> None:
    conf = README.parent / "conf"
    rows = re.findall(
        r"^\| `(data|model|optimizer|embedding)` \| (.*) \|$", README.read_text(), re.M
    )
    assert [group for group, _ in rows] == ["data", "model", "optimizer", "embedding"]
    for group, cell in rows:
        named = {w for quoted in re.findall(r"`([^`]+)`", cell) for w in quoted.split()}
        assert named == {path.stem for path in (conf / group).glob("*.yaml")}
