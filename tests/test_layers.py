"""Imports point one way: a package reads only from those before it."""

import ast
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
ORDER = ["ids", "data", "tables", "methods", "models", "checkpoint", "train", "report", "cli"]
KERNELS_MAY_IMPORT = {"torch", "triton", "__future__", *sys.stdlib_module_names}


def imported_modules(source: str) -> set[str]:
    """Return the modules that a source names in imports, at any depth of the code."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def upward_imports(package: str, source: str) -> list[str]:
    """Return the modules of later packages that a source of `package` imports."""
    later = ORDER[ORDER.index(package) + 1 :]
    return sorted(
        module
        for module in imported_modules(source)
        if module.startswith("recemb.") and module.split(".")[1] in later
    )


def foreign_imports(source: str) -> list[str]:
    """Return the modules that a kernel must not import."""
    return sorted(
        module
        for module in imported_modules(source)
        if module.split(".")[0] not in KERNELS_MAY_IMPORT
        and not module.startswith("recemb.kernels.")
    )


def test_no_package_imports_a_later_one() -> None:
    upward = {
        str(path.relative_to(CHECKOUT)): modules
        for package in ORDER
        for path in (CHECKOUT / "recemb" / package).rglob("*.py")
        if (modules := upward_imports(package, path.read_text()))
    }
    assert upward == {}


def test_every_package_has_a_place_in_the_order() -> None:
    packages = {path.parent.name for path in (CHECKOUT / "recemb").glob("*/__init__.py")}
    assert packages == set(ORDER)


def test_kernels_import_only_torch_and_triton() -> None:
    foreign = {
        str(path.relative_to(CHECKOUT)): modules
        for path in (CHECKOUT / "kernels").rglob("*.py")
        if (modules := foreign_imports(path.read_text()))
    }
    assert foreign == {}


def test_planted_upward_import_is_named() -> None:
    source = "def late() -> None:\n    from recemb.train.fit import Fit\n"
    assert upward_imports("data", source) == ["recemb.train.fit.Fit"]
    assert upward_imports("cli", source) == []


def test_planted_import_of_a_package_is_named() -> None:
    assert upward_imports("models", "from recemb import train\n") == ["recemb.train"]


def test_planted_foreign_import_in_a_kernel_is_named() -> None:
    source = "import torch\nimport recemb.tables.spec\nfrom recemb.kernels.bag import bag\n"
    assert foreign_imports(source) == ["recemb.tables.spec"]
