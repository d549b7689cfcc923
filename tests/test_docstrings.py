"""Every example in a docstring gives what it says."""

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import recemb
import recemb.kernels

# An editable recemb.kernels lies beside recemb and not in it; installed, it is found twice.
MODULES = sorted(
    {
        module.name
        for package in (recemb, recemb.kernels)
        for module in pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}.")
        if not module.name.endswith("__main__")
    }
)


def failures(module: ModuleType) -> tuple[int, int]:
    """Return how many examples of a module fail, and how many there are."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(module):
        # Running a docstring without examples takes as long as running one.
        if test.examples:
            runner.run(test)
    results = runner.summarize(verbose=False)
    return results.failed, results.attempted


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_module_hold(name: str) -> None:
    assert failures(importlib.import_module(name))[0] == 0


def test_a_wrong_example_is_found() -> None:
    wrong = ModuleType("wrong", doc=">>> 1 + 1\n2\n>>> 1 + 2\n4\n")
    assert failures(wrong) == (1, 2)
