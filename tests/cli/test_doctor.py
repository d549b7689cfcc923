"""The doctor finds each planted breakage and names its fix; a sound environment has none."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from recemb.cli import doctor
from recemb.cli.environment import Environment

VERSIONS = {
    "recemb": "0.1.0",
    "torch": "2.13.0+cpu",
    "torchrec": "1.8.0",
    "fbgemm-gpu-cpu": "1.8.0",
    "triton": "3.7.1",
    "numpy": "2.4.6",
    "torchmetrics": "1.0.3",
}
SOUND = Environment(
    python=(3, 11, 7),
    executable="/venv/bin/python",
    versions=VERSIONS,
    failures={},
    processor="Some CPU",
    num_cores=2,
    features=("avx2",),
    compiler="/usr/bin/g++",
    has_python_headers=True,
    gpus=(),
    torch_cuda=None,
    is_cuda_available=False,
)
SOUND_WITH_GPU = dataclasses.replace(
    SOUND,
    versions={
        **{name: text for name, text in VERSIONS.items() if name != "fbgemm-gpu-cpu"},
        "torch": "2.13.0",
        "fbgemm-gpu": "1.8.0",
    },
    gpus=("NVIDIA H100",),
    torch_cuda="13.0",
    is_cuda_available=True,
)
PIP = "/venv/bin/python -m pip"
FBGEMM_CPU_FIX = (
    f"{PIP} uninstall -y fbgemm-gpu fbgemm-gpu-cpu; {PIP} install --no-deps fbgemm-gpu-cpu==1.8.0"
)
FBGEMM_CUDA_FIX = FBGEMM_CPU_FIX.replace("--no-deps fbgemm-gpu-cpu==", "--no-deps fbgemm-gpu==")
TORCH_CPU_FIX = f"{PIP} install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0"


def planted(base: Environment = SOUND, **changes: Any) -> Environment:
    """Return an environment with other facts; a version of None means not installed."""
    changed = dict(changes.pop("versions", {}))
    versions = {**base.versions, **changed}
    versions = {name: text for name, text in versions.items() if text is not None}
    return dataclasses.replace(base, versions=versions, **changes)


def test_sound_environments_have_no_problem() -> None:
    assert doctor.diagnose(SOUND) == []
    assert doctor.diagnose(SOUND_WITH_GPU) == []


# Each row: what is planted, a part of what is said, the whole command that mends it.
BREAKAGES = {
    "python too new": (planted(python=(3, 14, 0)), "3.14.0", "make install PYTHON=python3.11"),
    "python too old": (planted(python=(3, 10, 9)), "3.10.9", "make install PYTHON=python3.11"),
    "torch missing": (planted(versions={"torch": None}), "torch is missing", TORCH_CPU_FIX),
    "torch too new": (planted(versions={"torch": "2.15.0"}), "torch 2.15.0", TORCH_CPU_FIX),
    "torch broken": (
        planted(failures={"torch": "ImportError: libc10.so"}),
        "does not import: ImportError: libc10.so",
        TORCH_CPU_FIX,
    ),
    "driver too old": (
        planted(SOUND_WITH_GPU, is_cuda_available=False),
        "built for CUDA 13.0 and cannot use NVIDIA H100",
        "update the NVIDIA driver, or: make install ACCELERATOR=cpu",
    ),
    "dependency missing": (
        planted(missing=("pyarrow>=17", "iopath>=0.1.10")),
        "missing dependencies: pyarrow>=17, iopath>=0.1.10",
        f"{PIP} install 'pyarrow>=17' 'iopath>=0.1.10'",
    ),
    "fbgemm missing": (
        planted(versions={"fbgemm-gpu-cpu": None}),
        "fbgemm is missing",
        FBGEMM_CPU_FIX,
    ),
    "CUDA fbgemm on a CPU machine": (
        planted(versions={"fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.8.0"}),
        "fbgemm-gpu 1.8.0 is the CUDA build, on a machine without GPU",
        FBGEMM_CPU_FIX,
    ),
    "CPU fbgemm beside a GPU": (
        planted(SOUND_WITH_GPU, versions={"fbgemm-gpu": None, "fbgemm-gpu-cpu": "1.8.0"}),
        "CPU build",
        FBGEMM_CUDA_FIX,
    ),
    "both fbgemm builds": (
        planted(versions={"fbgemm-gpu": "1.8.0"}),
        "both installed",
        FBGEMM_CPU_FIX,
    ),
    "fbgemm older than torch": (
        planted(versions={"fbgemm-gpu-cpu": "1.7.0", "torchrec": "1.7.0"}),
        "fbgemm 1.7.0 is not built for torch 2.13.0+cpu",
        FBGEMM_CPU_FIX,
    ),
    "fbgemm newer than torch": (
        planted(SOUND_WITH_GPU, versions={"fbgemm-gpu": "1.9.0", "torchrec": "1.9.0"}),
        "fbgemm 1.9.0 is not built for torch 2.13.0",
        FBGEMM_CUDA_FIX,
    ),
    "fbgemm broken": (
        planted(failures={"fbgemm_gpu": "OSError: undefined symbol"}),
        "fbgemm 1.8.0 does not import: OSError: undefined symbol",
        FBGEMM_CPU_FIX,
    ),
    "torchrec missing": (
        planted(versions={"torchrec": None}),
        "torchrec is missing",
        f"{PIP} install --force-reinstall --no-deps torchrec==1.8.0",
    ),
    "torchrec older than fbgemm": (
        planted(versions={"torchrec": "1.6.0"}),
        "torchrec 1.6.0 needs fbgemm 1.6, not 1.8.0",
        f"{PIP} install --force-reinstall --no-deps torchrec==1.8.0",
    ),
    "torchrec broken": (
        planted(failures={"torchrec": "ImportError: cannot import name"}),
        "torchrec 1.8.0 does not import: ImportError: cannot import name",
        f"{PIP} install --force-reinstall --no-deps torchrec==1.8.0",
    ),
    "other torchmetrics": (
        planted(versions={"torchmetrics": "1.8.2"}),
        "torchmetrics 1.8.2",
        f"{PIP} install torchmetrics==1.0.3",
    ),
    "triton too old for numpy": (
        planted(versions={"triton": "3.6.0"}),
        "triton 3.6.0: its interpreter does not work with numpy 2.4.6",
        f"{PIP} install triton==3.7.1",
    ),
    "triton missing beside a GPU": (
        planted(SOUND_WITH_GPU, versions={"triton": None}),
        "triton is missing",
        f"{PIP} install triton==3.7.1",
    ),
    "no C++ compiler": (
        planted(compiler=None),
        "no C++ compiler: torch.compile is unavailable",
        "apt install g++  (Fedora, RHEL: dnf install gcc-c++)",
    ),
    "only clang": (
        planted(compiler=None, other_compiler="/usr/bin/clang++"),
        "/usr/bin/clang++ is there",
        "export CXX=/usr/bin/clang++",
    ),
    "no Python headers": (
        planted(has_python_headers=False),
        "no Python.h",
        "apt install python3.11-dev  (Fedora, RHEL: dnf install python3-devel)",
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_planted_breakage_is_the_one_problem_and_has_its_fix(name: str) -> None:
    environment, said, fix = BREAKAGES[name]
    (problem,) = doctor.diagnose(environment)
    assert said in problem.what
    assert problem.fix == fix


def test_torch_before_all_that_is_built_on_it() -> None:
    failures = dict.fromkeys(("torch", "fbgemm_gpu", "torchrec"), "ImportError: libc10.so")
    (problem,) = doctor.diagnose(planted(failures=failures))
    assert problem.what.startswith("torch 2.13.0+cpu does not import")


def test_wrong_build_of_fbgemm_before_its_failing_import() -> None:
    versions = {"fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.8.0"}
    failures = {"fbgemm_gpu": "OSError: libcuda.so.1", "torchrec": "OSError: libcuda.so.1"}
    (problem,) = doctor.diagnose(planted(versions=versions, failures=failures))
    assert "is the CUDA build" in problem.what


def test_fbgemm_and_torchrec_that_differ_are_one_problem_each() -> None:
    problems = doctor.diagnose(planted(versions={"fbgemm-gpu-cpu": "1.9.0"}))
    assert [problem.fix for problem in problems] == [FBGEMM_CPU_FIX, FBGEMM_CPU_FIX]


def test_older_triton_is_fine_with_older_numpy() -> None:
    assert doctor.diagnose(planted(versions={"triton": "3.6.0", "numpy": "2.3.5"})) == []


def test_nothing_installed_is_reported_and_not_raised() -> None:
    environment = planted(versions=dict.fromkeys(VERSIONS))
    problems = doctor.diagnose(environment)
    assert [problem.what.split()[0] for problem in problems] == ["torch", "fbgemm", "torchrec"]
    assert "missing" in doctor.report(environment, problems)


def test_report_numbers_the_problems_and_names_the_fixes() -> None:
    environment = planted(versions={"torchrec": None}, compiler=None)
    page = doctor.report(environment, doctor.diagnose(environment))
    assert "2 problems found" in page
    assert "  1. torchrec is missing\n     fix: " in page


def test_report_of_a_sound_environment_says_so() -> None:
    assert doctor.report(SOUND, []).endswith("no problem found")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SOUND, {"torch": "available", "fbgemm": "available"}),
        (SOUND_WITH_GPU, {"triton": "available"}),
        (planted(failures={"torch": "OSError: x"}), {"torch": "not available: OSError: x"}),
        (planted(versions={"triton": None}), {"triton": "not available: not installed"}),
    ],
)
def test_backends_say_whether_and_why(environment: Environment, expected: dict[str, str]) -> None:
    assert expected.items() <= doctor.backends(environment).items()


@pytest.mark.parametrize(
    ("environment", "choice"),
    [
        (SOUND, "on the CPU fbgemm for float32 tables"),
        (SOUND_WITH_GPU, "on the GPU triton, else torch; on the CPU fbgemm"),
        (planted(failures={"fbgemm_gpu": "OSError: x"}), "on the CPU torch"),
    ],
)
def test_the_automatic_choice_of_a_backend_is_explained(
    environment: Environment, choice: str
) -> None:
    assert doctor.backends(environment)["auto"].startswith(choice)


@pytest.mark.parametrize(("planted_problem", "status"), [(False, 0), (True, 1)])
def test_status_is_one_where_something_is_broken(
    planted_problem: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = planted(compiler=None) if planted_problem else SOUND
    monkeypatch.setattr(doctor, "collect", lambda: environment)
    assert doctor.run([]) == status


def test_this_installation_is_sound() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "recemb", "doctor"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "no problem found" in ended.stdout
