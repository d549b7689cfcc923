"""Installs recemb with its tested versions into .venv of this checkout; `make install` runs it.

Needs Python 3.11 to 3.13 and its standard library, nothing else. It is quick when nothing changed,
and may be interrupted or killed: the note that says "complete" is written last and removed first,
and a first installation that was killed begins anew.

Environment: ACCELERATOR=cpu|cuda overrides the look for a GPU.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

CHECKOUT = Path(__file__).resolve().parent.parent
VENV = CHECKOUT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed.json"
# There from the making of .venv to the end of its first installation.
UNFINISHED = VENV / "unfinished"
CONSTRAINTS = CHECKOUT / "constraints.txt"
PYPROJECT = CHECKOUT / "pyproject.toml"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST, TOO_NEW = (3, 11), (3, 14)

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

Command: TypeAlias = list[str | Path]


def main() -> int:
    """Bring .venv up to date and return the exit status."""
    if not OLDEST <= sys.version_info[:2] < TOO_NEW:
        say(f"Python 3.11, 3.12 or 3.13 is needed, not {sys.version.split()[0]} ({sys.executable})")
        return 1
    with one_at_a_time():
        wanted = fingerprint(accelerator())
        found = read_stamp()
        if found == wanted:
            return 0
        if found and any(found.get(key) != wanted[key] for key in wanted if key != "inputs"):
            say(f"{VENV} was made for another checkout, Python or accelerator; starting anew")
            remove_venv()
        STAMP.unlink(missing_ok=True)
        try:
            make_venv()
            install(str(wanted["accelerator"]))
        except KeyboardInterrupt:
            say("interrupted; the same command begins again")
            return 130
        except subprocess.CalledProcessError as error:
            UNFINISHED.unlink(missing_ok=True)  # pip gave up by itself and left nothing torn
            say(f"failed (status {error.returncode}): {' '.join(map(str, error.cmd))}")
            say("mend the cause above (network? disk space?) and run the same command again")
            return 1
        UNFINISHED.unlink(missing_ok=True)
        write_stamp(wanted)
    say("done; `recemb doctor` says:")
    # Its verdict does not fail the installation: recemb trains without a C++ compiler, too.
    run([VENV_PYTHON, "-m", "recemb", "doctor"], check=False)
    return 0


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"[install] {text}", flush=True)


def run(
    command: Command, *, check: bool = True, quiet: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """Run a command, away from other environments' settings."""
    leaks = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
    env = {key: value for key, value in os.environ.items() if key not in leaks}
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, check=check, env=env, cwd=CHECKOUT, stdout=output, stderr=output)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold a lock on the checkout, so that two makes do not write one .venv."""
    descriptor = os.open(CHECKOUT, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def accelerator() -> str:
    """Return "cuda" where the driver lists a GPU, else "cpu"."""
    chosen = os.environ.get("ACCELERATOR", "")
    if chosen:
        if chosen not in ("cpu", "cuda"):
            sys.exit(f"[install] ACCELERATOR must be cpu or cuda, got {chosen!r}")
        return chosen
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "cuda" if listed.returncode == 0 and b"GPU" in listed.stdout else "cpu"


def fingerprint(accelerator: str) -> dict[str, str]:
    """Return what an environment depends on; a stamp that differs means work to do."""
    project = tomllib.loads(PYPROJECT.read_text())
    project["tool"] = project["tool"]["setuptools"]  # the other tools' settings install nothing
    inputs = [json.dumps(project), CONSTRAINTS.read_text(), Path(__file__).read_text()]
    return {
        "checkout": str(CHECKOUT),
        "python": PYTHON,
        "accelerator": accelerator,
        "inputs": hashlib.sha256("\0".join(inputs).encode()).hexdigest(),
    }


def read_stamp() -> dict[str, str]:
    """Return the stamp of a complete environment, or an empty one."""
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp


def write_stamp(stamp: dict[str, str]) -> None:
    """Write the stamp in one step."""
    half = STAMP.with_suffix(".half")
    half.write_text(json.dumps(stamp, indent=2))
    half.replace(STAMP)


def make_venv() -> None:
    """Make .venv, or keep the one that is there where it runs."""
    if venv_runs() and not UNFINISHED.exists():
        return
    if VENV.exists():
        say(f"{VENV} is unfinished or does not run on Python {PYTHON}; starting anew")
        remove_venv()
    VENV.mkdir()
    UNFINISHED.touch()
    base = getattr(sys, "_base_executable", sys.executable)
    say(f"making {VENV} with {base} ({sys.version.split()[0]})")
    if run([base, "-m", "venv", VENV], check=False).returncode or not venv_runs():
        remove_venv()
        sys.exit(
            f"[install] {base} cannot make virtual environments with pip; install that part of "
            f"Python (Debian, Ubuntu: apt install python{PYTHON}-venv) and try again"
        )


def remove_venv() -> None:
    """Remove .venv, its Python first, so that what a kill leaves of it does not run."""
    VENV_PYTHON.unlink(missing_ok=True)
    shutil.rmtree(VENV)


def venv_runs() -> bool:
    """Return whether .venv has this Python and a working pip."""
    probe = f"import pip, sys; sys.exit('%d.%d' % sys.version_info[:2] != '{PYTHON}')"
    try:
        return run([VENV_PYTHON, "-c", probe], check=False, quiet=True).returncode == 0
    except OSError:
        return False


def pip_install(*arguments: str | Path, check: bool = True, quiet: bool = True) -> bool:
    """Install into .venv within the constraints; return whether that worked."""
    pip: Command = [VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", "install"]
    # Compiling all of torch to byte code takes a minute; Python compiles what it imports.
    options = ["--no-compile", *(["--quiet"] if quiet else [])]
    return run([*pip, "-c", CONSTRAINTS, *options, *arguments], check=check).returncode == 0


def pinned(name: str) -> str:
    """Return the version that the constraints give a distribution."""
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    return pins[name]


def install(accelerator: str) -> None:
    """Install everything in four steps."""
    say(f"for {accelerator}: pip and setuptools")
    pip_install("pip", "setuptools")
    say(f"torch {pinned('torch')}")
    if accelerator == "cuda":
        # Three equals signs: not the +cpu build that a local index may offer under that version.
        pip_install(f"torch==={pinned('torch')}", quiet=False)
    else:
        install_cpu_torch()
    say("recemb, its dependencies and the development tools")
    pip_install("--no-build-isolation", "--editable", f".[{accelerator},dev]")
    if accelerator == "cpu":
        # Its metadata ask for fbgemm's CUDA build, so it comes without its dependencies.
        say("torchrec without its dependencies")
        pip_install("--no-deps", f"torchrec=={pinned('torchrec')}")


def install_cpu_torch() -> None:
    """Install torch's CPU build from pip's own settings, else from PyTorch's index of CPU builds.

    The build on PyPI brings gigabytes of CUDA libraries, which a machine without GPU can do
    without; it works there all the same, so it is the last resort and announced.
    """
    version = pinned("torch")
    query: Command = [
        VENV_PYTHON,
        "-c",
        "from importlib.metadata import version as v; print(v('torch'))",
    ]
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    if found.split("+")[0] == version:
        return
    build = f"torch=={version}+cpu"
    pip: Command = [VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run"]
    if run([*pip, "--no-deps", build], check=False, quiet=True).returncode == 0:
        pip_install("--no-deps", build)
        return
    say(f"from {CPU_INDEX}")
    if pip_install("--no-deps", "--retries", "2", "--index-url", CPU_INDEX, build, check=False):
        return
    say(f"WARNING: no {build} from {CPU_INDEX}; taking PyPI's CUDA build instead, about 3 GB")
    pip_install(f"torch=={version}", quiet=False)


if __name__ == "__main__":
    sys.exit(main())
