"""Python environments, one per peer, that the benchmark makes for itself.

Peers disagree about versions and would pull several gigabytes of CUDA libraries, so each gets a
virtual environment of its own, with the CPU build of torch first and the peer on top of it.
"""

import hashlib
import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_STAMP = "installed.json"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What is installed on top of torch.

    Attributes:
        name: names the folder.
        steps: arguments of one `pip install` each, in order.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]


ENVIRONMENTS = {
    e.name: e
    for e in (
        Environment(name="torch", steps=(("numpy",),)),
        # Importing its layers imports its preprocessing, and that imports ray. polars 2 took away
        # an argument that this version of FuxiCTR passes.
        Environment(
            name="fuxictr", steps=(("numpy", "setuptools", "polars<2"), ("fuxictr==2.3.10",))
        ),
        Environment(
            name="deepctr-torch",
            steps=(
                ("numpy", "tqdm", "scikit-learn", "requests"),
                ("--no-deps", "deepctr-torch==0.3.0"),
            ),
        ),
        # torchrec's metadata asks for fbgemm's CUDA build, hence --no-deps.
        Environment(
            name="torchrec",
            steps=(
                ("numpy", "setuptools", "fbgemm-gpu-cpu==1.8.0"),
                ("tensordict", "torchmetrics==1.0.3", "pyre-extensions", "iopath", "tqdm"),
                ("--no-deps", "torchrec==1.8.0"),
            ),
        ),
        Environment(name="fbgemm", steps=(("numpy", "setuptools", "fbgemm-gpu-cpu==1.8.0"),)),
    )
}


def python_of(name: str, cache: Path) -> Path:
    """Return the interpreter of environment `name`, making the environment if it is not there.

    Args:
        name: a key of ENVIRONMENTS.
        cache: folder of all environments.

    Raises:
        RuntimeError: if pip fails, with the command that failed.
    """
    environment = ENVIRONMENTS[name]
    folder = cache / name
    python = folder / "bin" / "python"
    stamp = folder / _STAMP
    wanted = _digest(environment)
    if stamp.is_file() and json.loads(stamp.read_text())["digest"] == wanted:
        return python
    print(f"installing environment '{name}' in {folder}", flush=True)
    venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    if not _pip(python, (TORCH,), check=False):
        _pip(python, ("--index-url", TORCH_INDEX, TORCH))
    for step in environment.steps:
        _pip(python, step)
    stamp.write_text(json.dumps({"digest": wanted, "packages": _freeze(python)}, indent=1))
    return python


def packages(python: Path) -> dict[str, str]:
    """Return name and version of what is installed beside `python`."""
    return dict(line.split("==", 1) for line in _freeze(python) if "==" in line)


def _digest(environment: Environment) -> str:
    words = json.dumps([TORCH, environment.name, environment.steps, sys.version_info[:2]])
    return hashlib.sha256(words.encode()).hexdigest()


def _pip(python: Path, arguments: tuple[str, ...], *, check: bool = True) -> bool:
    command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    print("  pip install " + " ".join(arguments), flush=True)
    code = subprocess.run(command, check=False, env=_plain_environment()).returncode
    if code and check:
        raise RuntimeError(f"benchmark environment: `{' '.join(command)}` failed with {code}")
    return code == 0


def _freeze(python: Path) -> list[str]:
    command = [str(python), "-m", "pip", "freeze"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def _plain_environment() -> dict[str, str]:
    """Return the variables without those that would point a peer at our own packages."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def main() -> None:
    """Install all environments, or those named on the command line."""
    cache = Path(__file__).resolve().parents[2] / ".cache" / "bench"
    for name in sys.argv[1:] or ENVIRONMENTS:
        print(python_of(name, cache))


if __name__ == "__main__":
    main()
