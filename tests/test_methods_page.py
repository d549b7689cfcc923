"""docs/methods.md has a section for every method, and for nothing else."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def test_every_method_has_a_section() -> None:
    page = (CHECKOUT / "docs" / "methods.md").read_text()
    sections = re.findall(r"^### (\w+)$", page, flags=re.MULTILINE)
    methods = {path.stem for path in (CHECKOUT / "conf" / "embedding").glob("*.yaml")}
    assert sorted(sections) == sorted(methods)


def test_every_section_says_what_a_budget_does() -> None:
    page = (CHECKOUT / "docs" / "methods.md").read_text()
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        name = section.split("\n", 1)[0]
        assert "*Budget:*" in section, name
        assert "*Training:*" in section, name
