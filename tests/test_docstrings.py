"""Every example in a docstring gives what it says."""

import doctest
import importlib
import pkgutil

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


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_module_hold(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0
