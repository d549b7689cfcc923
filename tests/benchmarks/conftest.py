"""Importing the benchmarks' scripts, whose folders are on the path only when they run."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

_ROOT = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], ModuleType]]:
    """Import a script by its name from one of the folders that the test file has as FOLDERS."""
    before = set(sys.modules)
    for folder in request.module.FOLDERS:
        monkeypatch.syspath_prepend(str(_ROOT / folder))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(_ROOT) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
