"""What recemb runs on: versions, processor, compiler, GPUs, and which libraries import."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DISTRIBUTIONS: Final = (
    *("recemb", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "triton", "numpy"),
    *("hydra-core", "omegaconf", "pandas", "pyarrow", "torchmetrics", "tensordict"),
)
# Tried in this order in a process of their own, for a broken one may take its process along.
PROBED_MODULES: Final = ("torch", "fbgemm_gpu", "torchrec", "triton")
PROCESSOR_FEATURES: Final = {
    "avx2": {"avx2"},
    "avx512": {"avx512f"},
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
}
_PROBE: Final = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
def tell(**fact):
    print("recemb-fact", json.dumps(fact), flush=True)
for name in sys.argv[1:]:
    tell(trying=name)
    try:
        module = importlib.import_module(name)
        if name == "torch":
            tell(torch_cuda=module.version.cuda, cuda_available=module.cuda.is_available())
        if name == "fbgemm_gpu":
            import torch
            lengths = torch.tensor([1, 2])
            assert torch.ops.fbgemm.asynchronous_complete_cumsum(lengths).tolist() == [0, 1, 3]
        tell(imported=name)
    except BaseException as error:
        text = str(error).strip() or "no message"
        tell(failed=name, reason=f"{type(error).__name__}: {text.splitlines()[0]}")
"""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What was found; `recemb doctor` judges it.

    Attributes:
        python: version of the interpreter.
        executable: path of the interpreter.
        versions: version of each distribution that is installed.
        missing: recemb's dependencies that are not installed.
        commit: of recemb's sources where they lie in a git checkout.
        location: folder of the package.
        failures: why a module does not import, for those that were found and do not.
        processor: its name.
        num_cores: cores that this process may use.
        features: of the processor, a part of avx2, avx512, bf16.
        compiler: the C++ compiler that torch.compile would call, if it exists.
        other_compiler: a C++ compiler that is there but that torch.compile does not look for.
        has_python_headers: whether Python.h is there, which compiled code includes.
        gpus: names that the driver lists.
        torch_cuda: CUDA version that torch was built for, None for the CPU build.
        is_cuda_available: whether torch can use a GPU.
    """

    python: tuple[int, int, int]
    executable: str
    versions: Mapping[str, str]
    missing: Sequence[str] = ()
    commit: str | None = None
    location: str = ""
    failures: Mapping[str, str]
    processor: str
    num_cores: int
    features: Sequence[str]
    compiler: str | None
    other_compiler: str | None = None
    has_python_headers: bool
    gpus: Sequence[str]
    torch_cuda: str | None
    is_cuda_available: bool


def collect() -> Environment:
    """Return this machine's environment; takes seconds, for it imports torch in a process."""
    failures, torch_cuda, is_cuda_available = probe_modules(PROBED_MODULES)
    features = processor_features()
    package = Path(__file__).resolve().parent.parent
    wanted, clang = os.environ.get("CXX", "g++"), "clang++"
    return Environment(
        python=sys.version_info[:3],
        executable=sys.executable,
        versions=installed_versions(DISTRIBUTIONS),
        missing=missing_requirements("recemb"),
        commit=git_commit(package.parent),
        location=str(package),
        failures=failures,
        processor=processor_name(),
        num_cores=len(os.sched_getaffinity(0)),
        features=features,
        compiler=shutil.which(wanted),
        other_compiler=shutil.which(clang),
        has_python_headers=Path(sysconfig.get_path("include"), "Python.h").exists(),
        gpus=gpu_names(),
        torch_cuda=torch_cuda,
        is_cuda_available=is_cuda_available,
    )


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed, importing none."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def missing_requirements(name: str) -> list[str]:
    """Return the requirements of a distribution, extras apart, that are not installed."""
    try:
        requirements = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    plain = [text for text in requirements if "extra ==" not in text]
    names = {re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]: text for text in plain}
    return [text for name, text in names.items() if not installed_versions([name])]


def probe_modules(names: Sequence[str]) -> tuple[dict[str, str], str | None, bool]:
    """Import modules in another process.

    Returns:
        why each of those that do not import does not (a module that is not there is left out),
        the CUDA version of torch's build, and whether torch can use a GPU.
    """
    command = [sys.executable, "-c", _PROBE, *names]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.split(" ", 1)[1] for line in ended.stdout.splitlines() if "recemb-fact " in line]
    facts = [json.loads(line) for line in lines]
    failures = {fact["failed"]: fact["reason"] for fact in facts if "failed" in fact}
    if ended.returncode and facts and "trying" in facts[-1]:
        failures[facts[-1]["trying"]] = f"its import ends the process ({ended.returncode})"
    failures = {
        module: reason
        for module, reason in failures.items()
        if reason != f"ModuleNotFoundError: No module named {module!r}"
    }
    torch_facts = next((fact for fact in facts if "torch_cuda" in fact), None) or {}
    return failures, torch_facts.get("torch_cuda"), torch_facts.get("cuda_available", False)


def processor_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return which of avx2, avx512 and bf16 the processor has, none where it does not tell."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return []
    lines = [line for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    flags = set(lines[0].split(":", 1)[1].split()) if lines else set()
    return [name for name, any_of in PROCESSOR_FEATURES.items() if any_of & flags]


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, its architecture where it does not tell."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return platform.machine()
    names = re.findall(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return names[0] if names else platform.machine()


def gpu_names() -> list[str]:
    """Return the GPUs that NVIDIA's driver lists."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return _output(command).splitlines()


def git_commit(folder: Path) -> str | None:
    """Return the commit of the checkout at a folder, None where it is not one's root."""
    if not (folder / ".git").exists():
        return None
    return _output(["git", "-C", str(folder), "rev-parse", "--short=10", "HEAD"]).strip() or None


def _output(command: list[str]) -> str:
    """Return what a command prints, nothing where it is absent or fails."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ended.stdout
