"""Every kernel compiles ahead of time: no spills, and wide loads where a case asks for them."""

import csv
import os
import subprocess
import sys
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


EVERY_CASE = pytest.param((), marks=pytest.mark.slow, id="every case")
"""Some 350 compilations of about a second, see `make test-all`."""


@pytest.mark.parametrize("words", [pytest.param(("--ends",), id="two cases"), EVERY_CASE])
@pytest.mark.parametrize("kernel", aot.kernel_names())
def test_kernel_compiles_for_every_target(
    kernel: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    table = tmp_path / "report.csv"
    named = ("--kernel", kernel, "--csv", str(table))
    done = subprocess.run(
        [sys.executable, "-m", "recemb.kernels.aot", *named, *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["target"] for row in rows} == set(aot.TARGETS)
    assert all(row["failure"] == "" for row in rows)


def test_every_kernel_folder_has_cases() -> None:
    folders = {p.parent.name for p in Path(aot.__file__).parent.glob("*/kernel.py")}
    assert set(aot.kernel_names()) == folders


def test_compiler_report_finds_what_is_wrong(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    subprocess.run([sys.executable, str(script)], env=environment(), check=True)
