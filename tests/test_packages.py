"""What is packaged is what lies in the tree."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

import recemb.conf
import recemb.kernels

CHECKOUT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
ROOTS = {"recemb": "recemb", "recemb.conf": "conf", "recemb.kernels": "kernels"}


def packages_in_tree() -> set[str]:
    """Return the dotted name of every folder with Python in it."""
    return {
        ".".join([package, *path.parent.relative_to(CHECKOUT / folder).parts])
        for package, folder in ROOTS.items()
        for path in (CHECKOUT / folder).rglob("*.py")
    }


def test_package_list_is_the_tree() -> None:
    assert set(SETUPTOOLS["packages"]) == packages_in_tree()


def test_package_list_is_sorted_and_has_no_duplicates() -> None:
    assert SETUPTOOLS["packages"] == sorted(set(SETUPTOOLS["packages"]))


def test_every_package_has_an_init_file() -> None:
    folders = {
        path.parent for folder in ROOTS.values() for path in CHECKOUT.glob(f"{folder}/**/*.py")
    }
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_packages_outside_recemb_are_mapped() -> None:
    assert SETUPTOOLS["package-dir"] == ROOTS


def test_configuration_groups_hold_only_yaml() -> None:
    files = [path for path in CHECKOUT.glob("conf/*/**/*") if path.is_file()]
    foreign = [path for path in files if path.suffix != ".yaml" and "__pycache__" not in path.parts]
    assert foreign == []


def test_configuration_and_kernels_are_those_of_the_checkout() -> None:
    assert Path(recemb.conf.__file__).parent == CHECKOUT / "conf"
    assert Path(recemb.kernels.__file__).parent == CHECKOUT / "kernels"


@pytest.mark.parametrize("name", ["conf", "kernels"])
def test_folder_refuses_to_be_a_package_of_its_own(name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, CHECKOUT / name / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.raises(ImportError, match=rf"import recemb\.{name} instead"):
        spec.loader.exec_module(module)


def test_constraints_pin_every_requirement() -> None:
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    required = [
        *PYPROJECT["project"]["dependencies"],
        *(text for extra in extras for text in extra),
    ]
    names = {text.split("=")[0].rstrip("<>") for text in required}
    assert names <= pinned
