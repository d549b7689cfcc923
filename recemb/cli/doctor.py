"""`recemb doctor`: versions, backends, and for each known breakage the command that mends it.

Imports no library that may be broken; `collect` tries those in another process.
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from recemb.cli.environment import Environment, collect

TORCH: Final = "2.13.0"
TORCHREC: Final = "1.8.0"
FBGEMM: Final = "1.8.0"
TRITON: Final = "3.7.1"
TORCHMETRICS: Final = "1.0.3"
CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Problem:
    """Something broken.

    Attributes:
        what: the fact and why it matters.
        fix: the command line that mends it.
    """

    what: str
    fix: str


def run(arguments: list[str]) -> int:
    """Print the findings and return 0, or 1 where something is broken."""
    parser = argparse.ArgumentParser(
        prog="recemb doctor",
        description="Print versions and backends; name what is broken and the command that mends "
        "it. Exits 1 when something is.",
    )
    parser.parse_args(arguments)
    environment = collect()
    problems = diagnose(environment)
    print(report(environment, problems))
    return 1 if problems else 0


def diagnose(environment: Environment) -> list[Problem]:
    """Return what is broken, causes before their consequences."""
    found = [rule(environment) for rule in RULES]
    return [problem for problem in found if problem is not None]


def report(environment: Environment, problems: list[Problem]) -> str:
    """Return the page that `recemb doctor` prints."""
    lines = ["versions", *_table(versions_table(environment))]
    lines += ["", "machine", *_table(machine_table(environment))]
    lines += ["", "backends", *_table(backends(environment)), ""]
    if not problems:
        return "\n".join([*lines, "no problem found"])
    lines.append(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found")
    for number, problem in enumerate(problems, start=1):
        lines += [f"  {number}. {problem.what}", f"     fix: {problem.fix}"]
    return "\n".join(lines)


def versions_table(environment: Environment) -> dict[str, str]:
    """Return the version of each library, or that it is missing."""
    versions = dict(environment.versions)
    python = ".".join(map(str, environment.python))
    commit = f", commit {environment.commit}" if environment.commit else ""
    recemb = f"{versions.pop('recemb', 'not installed')} ({environment.location}{commit})"
    table = {"python": f"{python} ({environment.executable})", "recemb": recemb}
    for name in ("torch", "torchrec"):
        table[name] = versions.pop(name, "missing")
    builds = [name for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if name in versions]
    for name in builds or ["fbgemm-gpu-cpu"]:
        table[name] = versions.pop(name, "missing")
    return {**table, **versions}


def machine_table(environment: Environment) -> dict[str, str]:
    """Return the parts of the machine that decide about speed."""
    features = ", ".join(
        f"{name} {'yes' if name in environment.features else 'no'}"
        for name in ("avx2", "avx512", "bf16")
    )
    cores = f"{environment.num_cores} core{'s' if environment.num_cores != 1 else ''}"
    return {
        "processor": f"{environment.processor}, {cores}: {features}",
        "compiler": environment.compiler or "none",
        "gpu": ", ".join(environment.gpus) or "none",
        "cuda": f"torch built for {environment.torch_cuda}" if environment.torch_cuda else "none",
    }


def backends(environment: Environment) -> dict[str, str]:
    """Return for each backend of the lookup engine that it is available, or why not."""
    table = {}
    for name, module, names in (
        ("torch", "torch", ("torch",)),
        ("fbgemm", "fbgemm_gpu", ("fbgemm-gpu", "fbgemm-gpu-cpu")),
        ("triton", "triton", ("triton",)),
    ):
        if not any(distribution in environment.versions for distribution in names):
            table[name] = "not available: not installed"
        elif module in environment.failures:
            table[name] = f"not available: {environment.failures[module]}"
        else:
            table[name] = "available"
    if table["triton"] == "available" and not environment.is_cuda_available:
        table["triton"] = "not available: no GPU that torch can use (interpreter and compiler work)"
    table["auto"] = _automatic_choice(table)
    return table


def _automatic_choice(table: dict[str, str]) -> str:
    """Return what backend=auto takes here, by the rules of `recemb.tables.backend`."""
    on_cpu = "torch"
    if table["fbgemm"] == "available":
        on_cpu = (
            "fbgemm for float32 tables of widths that are multiples of 4 under SGD, Adagrad or "
            "row-wise Adagrad without weight decay, else torch"
        )
    on_cuda = "triton, else torch; " if table["triton"] == "available" else ""
    device = "on the GPU " if on_cuda else ""
    return f"{device}{on_cuda}on the CPU {on_cpu}"


def check_python(environment: Environment) -> Problem | None:
    """Judge the interpreter's version."""
    if (3, 11) <= environment.python < (3, 14):
        return None
    version = ".".join(map(str, environment.python))
    return Problem(
        f"python {version}: recemb needs 3.11, 3.12 or 3.13",
        "make install PYTHON=python3.11",
    )


def check_requirements(environment: Environment) -> Problem | None:
    """Judge whether all dependencies are there; torch has a rule of its own."""
    missing = [text for text in environment.missing if not re.match(r"torch\b", text)]
    if not missing:
        return None
    quoted = " ".join(f"'{text}'" for text in missing)
    return Problem(f"missing dependencies: {', '.join(missing)}", _pip(environment, quoted))


def check_torch(environment: Environment) -> Problem | None:
    """Judge torch's version, build and whether it imports."""
    version = environment.versions.get("torch")
    if version is None:
        return Problem("torch is missing", _torch_fix(environment))
    if _minor(version) != _minor(TORCH):
        return Problem(
            f"torch {version}: the fbgemm and torchrec that recemb uses are built for {TORCH}",
            _torch_fix(environment),
        )
    if "torch" in environment.failures:
        return Problem(
            f"torch {version} does not import: {environment.failures['torch']}",
            _torch_fix(environment),
        )
    if environment.gpus and environment.torch_cuda and not environment.is_cuda_available:
        return Problem(
            f"torch {version} is built for CUDA {environment.torch_cuda} and cannot use "
            f"{environment.gpus[0]}: the NVIDIA driver is older than that CUDA needs",
            "update the NVIDIA driver, or: make install ACCELERATOR=cpu",
        )
    return None


def check_fbgemm_build(environment: Environment) -> Problem | None:
    """Judge whether exactly one build of fbgemm is there, the one for this machine."""
    builds = [name for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if name in environment.versions]
    if not builds:
        return Problem(
            "fbgemm is missing, which torchrec and the fbgemm backend need",
            _fbgemm_fix(environment),
        )
    if len(builds) == 2:
        return Problem(
            "fbgemm-gpu and fbgemm-gpu-cpu are both installed and overwrite each other's files",
            _fbgemm_fix(environment),
        )
    if builds == ["fbgemm-gpu"] and not environment.gpus:
        return Problem(
            f"fbgemm-gpu {environment.versions['fbgemm-gpu']} is the CUDA build, on a machine "
            "without GPU (torchrec's metadata ask for it wherever it is installed)",
            _fbgemm_fix(environment),
        )
    if builds == ["fbgemm-gpu-cpu"] and environment.is_cuda_available:
        return Problem(
            "fbgemm-gpu-cpu is the CPU build, and torch uses a GPU",
            _fbgemm_fix(environment),
        )
    return None


def check_fbgemm_version(environment: Environment) -> Problem | None:
    """Judge whether fbgemm 1.x meets torch 2.(x + 5), the release that it is built for."""
    torch, fbgemm = environment.versions.get("torch"), _fbgemm_version(environment)
    if torch is None or fbgemm is None or _minor(torch) != _minor(TORCH):
        return None
    if _minor(fbgemm) != _minor(FBGEMM):
        return Problem(
            f"fbgemm {fbgemm} is not built for torch {torch}: its operators load wrongly or not "
            f"at all; torch {TORCH} needs fbgemm {FBGEMM}",
            _fbgemm_fix(environment),
        )
    if check_fbgemm_build(environment) or "torch" in environment.failures:
        return None
    if "fbgemm_gpu" in environment.failures:
        return Problem(
            f"fbgemm {fbgemm} does not import: {environment.failures['fbgemm_gpu']}",
            _fbgemm_fix(environment),
        )
    return None


def check_torchrec(environment: Environment) -> Problem | None:
    """Judge whether torchrec is there, fits fbgemm, and imports."""
    version, fbgemm = environment.versions.get("torchrec"), _fbgemm_version(environment)
    fix = _pip(environment, f"--force-reinstall --no-deps torchrec=={TORCHREC}")
    if version is None:
        return Problem("torchrec is missing", fix)
    if fbgemm is not None and _minor(version) != _minor(fbgemm):
        if _minor(version) == _minor(TORCHREC):
            fix = _fbgemm_fix(environment)
        return Problem(f"torchrec {version} needs fbgemm {_release(version)}, not {fbgemm}", fix)
    broken_below = {"torch", "fbgemm_gpu"} & set(environment.failures)
    if "torchrec" in environment.failures and not broken_below and fbgemm is not None:
        reason = environment.failures["torchrec"]
        return Problem(f"torchrec {version} does not import: {reason}", fix)
    return None


def check_torchmetrics(environment: Environment) -> Problem | None:
    """Judge torchmetrics, of which torchrec takes one version only."""
    version = environment.versions.get("torchmetrics", TORCHMETRICS)
    if version == TORCHMETRICS:
        return None
    return Problem(
        f"torchmetrics {version}: torchrec {TORCHREC} takes {TORCHMETRICS} only",
        _pip(environment, f"torchmetrics=={TORCHMETRICS}"),
    )


def check_triton(environment: Environment) -> Problem | None:
    """Judge triton: present with a GPU, and new enough for numpy."""
    version = environment.versions.get("triton")
    fix = _pip(environment, f"triton=={TRITON}")
    if version is None:
        if environment.is_cuda_available:
            return Problem("triton is missing, and recemb's GPU kernels need it", fix)
        return None
    numpy = environment.versions.get("numpy", "0")
    if _numbers(version) < _numbers(TRITON) and _numbers(numpy) >= (2, 4):
        return Problem(
            f"triton {version}: its interpreter does not work with numpy {numpy}; numpy 2.4 and "
            f"newer need triton {TRITON} or newer",
            fix,
        )
    if "triton" in environment.failures:
        return Problem(f"triton {version} does not import: {environment.failures['triton']}", fix)
    return None


def check_compiler(environment: Environment) -> Problem | None:
    """Judge whether torch.compile finds a C++ compiler and Python's headers."""
    lost = "torch.compile is unavailable and training runs uncompiled, slower"
    if environment.compiler is None:
        if environment.other_compiler:
            return Problem(
                f"no g++ ({environment.other_compiler} is there, but torch.compile does not look "
                f"for it): {lost}",
                f"export CXX={environment.other_compiler}",
            )
        return Problem(
            f"no C++ compiler: {lost}",
            "apt install g++  (Fedora, RHEL: dnf install gcc-c++)",
        )
    if not environment.has_python_headers:
        major, minor, _ = environment.python
        return Problem(
            f"no Python.h: {lost}",
            f"apt install python{major}.{minor}-dev  (Fedora, RHEL: dnf install python3-devel)",
        )
    return None


RULES: Final[tuple[Callable[[Environment], Problem | None], ...]] = (
    check_python,
    check_torch,
    check_requirements,
    check_fbgemm_build,
    check_fbgemm_version,
    check_torchmetrics,
    check_torchrec,
    check_triton,
    check_compiler,
)


def _pip(environment: Environment, what: str) -> str:
    return f"{environment.executable} -m pip install {what}"


def _torch_fix(environment: Environment) -> str:
    if environment.gpus:
        return _pip(environment, f"torch=={TORCH}")
    return _pip(environment, f"--index-url {CPU_INDEX} torch=={TORCH}")


def _fbgemm_fix(environment: Environment) -> str:
    build = "fbgemm-gpu" if environment.gpus and environment.torch_cuda else "fbgemm-gpu-cpu"
    uninstall = f"{environment.executable} -m pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu"
    return f"{uninstall}; {_pip(environment, f'--no-deps {build}=={FBGEMM}')}"


def _fbgemm_version(environment: Environment) -> str | None:
    versions = environment.versions
    return versions.get("fbgemm-gpu-cpu", versions.get("fbgemm-gpu"))


def _numbers(version: str) -> tuple[int, ...]:
    """Return 2.13.0+cpu as (2, 13, 0)."""
    return tuple(int(digits) for digits in re.findall(r"\d+", version.split("+")[0])[:3])


def _minor(version: str) -> tuple[int, ...]:
    return _numbers(version)[:2]


def _release(version: str) -> str:
    return ".".join(map(str, _minor(version)))


def _table(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [f"  {name:<{width}}  {text}" for name, text in rows.items()]
