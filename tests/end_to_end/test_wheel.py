"""recemb works installed from its wheel, and editable, from any folder.

Each installation gets a virtual environment that sees this one's libraries but not its recemb:
a path in a .pth file comes after the environment's own packages, and .pth files in it (the editable
recemb of this checkout is one) are not read.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "recemb", "kernels", "conf")
PACKAGES = "import recemb, recemb.conf, recemb.kernels"
SMALL_RUN = [
    "data.num_train=600",
    "data.num_val=300",
    "data.num_test=300",
    "data.scale=0.0001",
    "model.hidden_units=[8]",
    "trainer.batch_size=200",
    "trainer.num_threads=1",
    "logger=none",
    "progress=false",
    "paths.run=run",
]


@dataclass(frozen=True)
class Installation:
    """A virtual environment with recemb, and an empty folder to work in."""

    bin: Path
    folder: Path

    def run(self, *command: str) -> str:
        """Return what a program of the environment prints, run from the empty folder."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        ended = subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


def copy_sources(folder: Path) -> Path:
    """Copy what a build reads, so that nothing is built inside the checkout."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, folder / name, ignore=ignore)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, folder / name)
    return folder


def install(folder: Path, *what: str) -> Installation:
    """Make an environment at a folder and install recemb alone into it."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    libraries = sysconfig.get_path("purelib")
    # While pip runs, the environment sees nothing but the build backend, so that pip can neither
    # see nor touch this environment's recemb.
    backend = folder / "backend"
    backend.mkdir()
    for pattern in ("setuptools*", "_distutils_hack"):
        for part in Path(libraries).glob(pattern):
            (backend / part.name).symlink_to(part)
    (own / "libraries.pth").write_text(f"{backend}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install"]
    subprocess.run([*pip, "--quiet", "--no-deps", "--no-build-isolation", *what], check=True)
    (own / "libraries.pth").write_text(f"{libraries}\n")
    work = folder / "work"
    work.mkdir()
    return Installation(bin=venv / "bin", folder=work)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    sources = copy_sources(folder / "sources")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, sources], check=True)
    (built,) = folder.glob("recemb-*.whl")
    return built


@pytest.fixture(scope="module")
def from_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return install(tmp_path_factory.mktemp("from_wheel"), str(wheel))


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("editable")
    return install(folder, "--editable", str(copy_sources(folder / "sources")))


def test_wheel_holds_every_source_and_configuration_file(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    roots = {"recemb": "recemb", "conf": "recemb/conf", "kernels": "recemb/kernels"}
    tree = {
        f"{target}/{path.relative_to(CHECKOUT / source)}"
        for source, target in roots.items()
        for suffix in ("py", "yaml", "typed")
        for path in (CHECKOUT / source).rglob(f"*.{suffix}")
    }
    assert packed == tree


def test_wheel_carries_the_licence(wheel: Path) -> None:
    assert any(name.endswith("/licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_wheel_s_packages_are_loaded_from_the_installation(from_wheel: Installation) -> None:
    show = "print(*(m.__file__ for m in (recemb, recemb.conf, recemb.kernels)))"
    files = from_wheel.run("python", "-c", f"{PACKAGES}; {show}").split()
    assert [from_wheel.bin.parent in Path(file).parents for file in files] == [True] * 3


def test_editable_packages_are_loaded_from_the_sources(editable: Installation) -> None:
    show = "print(*(m.__file__ for m in (recemb, recemb.conf, recemb.kernels)))"
    files = editable.run("python", "-c", f"{PACKAGES}; {show}").split()
    sources = editable.folder.parent / "sources"
    folders = [sources / "recemb", sources / "conf", sources / "kernels"]
    assert [Path(file).parent for file in files] == folders


@pytest.mark.parametrize("kind", ["from_wheel", "editable"])
def test_nothing_is_installed_under_another_name(kind: str, request: pytest.FixtureRequest) -> None:
    installation: Installation = request.getfixturevalue(kind)
    code = "import importlib.util as u; print(u.find_spec('conf'), u.find_spec('kernels'))"
    assert installation.run("python", "-c", code).split() == ["None", "None"]


@pytest.mark.parametrize("kind", ["from_wheel", "editable"])
def test_command_and_module_show_the_same_help(kind: str, request: pytest.FixtureRequest) -> None:
    installation: Installation = request.getfixturevalue(kind)
    from_command = installation.run("recemb", "--help")
    assert from_command.startswith("usage: recemb VERB")
    assert from_command == installation.run("python", "-m", "recemb", "--help")


@pytest.mark.parametrize("kind", ["from_wheel", "editable"])
def test_training_from_an_empty_folder(kind: str, request: pytest.FixtureRequest) -> None:
    installation: Installation = request.getfixturevalue(kind)
    installation.run("recemb", "train", *SMALL_RUN)
    summary = json.loads((installation.folder / "run" / "summary.json").read_text())
    assert 0 <= summary["metrics"]["test/auc"] <= 1
