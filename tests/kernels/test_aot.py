"""Every kernel compiles ahead of time: no spills, and wide loads where a case asks for them."""

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recemb.kernels import aot

BROKEN = """
import triton, triton.language as tl
from recemb.kernels.aot import AotCase, compile_case

@triton.jit
def _copy_kernel(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at))

def report(kind="*fp32", **named):
    case = AotCase(name="copy", kernel=_copy_kernel, signature={"x": kind, "y": kind},
                   constexprs={"BLOCK": 512}, **named)
    return compile_case(case, "cuda:90")

assert report(needs_wide_loads=True).failure == "", report(needs_wide_loads=True)
assert "registers, more than 1" in report(max_registers=1).failure
assert "no 128-bit load" in report("*i8", num_warps=16, needs_wide_loads=True).failure
assert "CompilationError" in report("i32").failure
"""


def environment() -> dict[str, str]:
    """The tests' interpreter must be off, for interpreted kernels cannot be compiled."""
    return {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


def compiled(table: Path, kernels: Sequence[str], *words: str) -> list[dict[str, str]]:
    """Compile the cases of some kernels in a process; return the reports."""
    named = [word for kernel in kernels for word in ("--kernel", kernel)]
    done = subprocess.run(
        [sys.executable, "-m", "recemb.kernels.aot", *named, "--csv", str(table), *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    rows = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
    # A failed compilation is the row of its kernel, and that kernel's test's to report.
    assert done.returncode == int(any(row["failure"] for row in rows)), done.stdout + done.stderr
    return rows


def check(rows: list[dict[str, str]]) -> None:
    assert {row["target"] for row in rows} == set(aot.TARGETS)
    assert [row for row in rows if row["failure"]] == []


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The reports of every kernel's first and last case, compiled on two cores."""
    names, folder = aot.kernel_names(), tmp_path_factory.mktemp("reports")
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(
            lambda half: compiled(folder / f"{half}.csv", names[half::2], "--ends"), range(2)
        )
        return [row for rows in halves for row in rows]


@pytest.mark.parametrize("kernel", aot.kernel_names())
def test_two_cases_compile_for_every_target(kernel: str, ends: list[dict[str, str]]) -> None:
    check([row for row in ends if row["kernel"] == kernel])


# Some 350 compilations of about a second, see `make test-all`.
@pytest.mark.slow
@pytest.mark.parametrize("kernel", aot.kernel_names())
def test_every_case_compiles_for_every_target(kernel: str, tmp_path: Path) -> None:
    check(compiled(tmp_path / "report.csv", [kernel]))


def test_every_kernel_folder_has_cases() -> None:
    folders = {p.parent.name for p in Path(aot.__file__).parent.glob("*/kernel.py")}
    assert set(aot.kernel_names()) == folders


def test_compiler_report_finds_what_is_wrong(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    subprocess.run([sys.executable, str(script)], env=environment(), check=True)
