"""Compiles every kernel for GPUs that need not be there, and reads what the compiler made of it.

Run by hand: `python -m recemb.kernels.aot [--kernel NAME] [--target cuda:90] [--csv FILE]`. It
prints one line per kernel and target and exits with 1 if one fails. Needs triton, not a GPU. It
must run without TRITON_INTERPRET, for interpreted kernels cannot be compiled.
"""

import argparse
import csv
import dataclasses
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TARGETS = ("cuda:80", "cuda:90", "hip:gfx942")
_WARP_SIZES = {"cuda": 32, "hip": 64}


@dataclass(frozen=True, kw_only=True)
class AotCase:
    """One configuration of a kernel.

    Attributes:
        name: says what is special about it.
        kernel: the function under @triton.jit.
        signature: Triton's type of each argument that is no constexpr, such as "*fp32" or "i32".
            Pointers are taken to be divisible by 16, as torch's allocations are.
        constexprs: value of each constexpr.
        num_warps: warps of a program.
        num_stages: depth of software pipelining.
        maxnreg: the compiler's limit of registers; None for its own choice. CUDA only.
        max_registers: more registers per thread than this fail. CUDA only.
        needs_wide_loads: whether at least one 128-bit load from global memory must be there; or
            the backend where it must be, "cuda" or "hip", if a thread has fewer bytes on the other.
        divisible_by_16: the integer arguments that are.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    maxnreg: int | None = None
    max_registers: int = 255
    needs_wide_loads: bool | str = False
    divisible_by_16: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True)
class AotReport:
    """What the compiler made of a case.

    Attributes:
        kernel: folder of the kernel.
        case: name of the case.
        target: such as "cuda:90".
        registers: per thread.
        spill_bytes: per thread; local memory that the compiler needed for want of registers.
        shared_bytes: per program.
        wide_loads: 128-bit loads from global memory in the code.
        wide_stores: 128-bit stores.
        failure: what is wrong; empty if nothing is.
    """

    kernel: str
    case: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    wide_loads: int
    wide_stores: int
    failure: str


def compile_case(case: AotCase, target: str, *, kernel: str = "") -> AotReport:
    """Return the report on `case` for `target`; a failure to compile is in it, not raised.

    Args:
        case: what to compile.
        target: "cuda:<compute capability>" or "hip:<architecture>".
        kernel: the folder's name, for the report.
    """
    try:
        compiled = _compile(case, target)
    except Exception as error:  # the compiler's, whatever it is: the report says so
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        counts = dict.fromkeys(
            ("registers", "spill_bytes", "shared_bytes", "wide_loads", "wide_stores"), -1
        )
        return AotReport(kernel=kernel, case=case.name, target=target, failure=text, **counts)
    counts = (_read_cubin if target.startswith("cuda") else _read_amdgcn)(compiled)
    counts["shared_bytes"] = int(compiled.metadata.shared)
    return AotReport(
        kernel=kernel,
        case=case.name,
        target=target,
        failure=_failure(case, target, counts),
        **counts,
    )


def cases_of(kernel: str) -> list[AotCase]:
    """Return the cases in the folder of `kernel`."""
    cases: list[AotCase] = importlib.import_module(f"recemb.kernels.{kernel}.cases").aot_cases()
    return cases


def kernel_names() -> list[str]:
    """Return the folders that have kernels, sorted."""
    folder = Path(__file__).parent
    return sorted(
        m.name
        for m in pkgutil.iter_modules([str(folder)])
        if (folder / m.name / "cases.py").exists()
    )


def _compile(case: AotCase, target: str) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    backend, architecture = target.split(":")
    names = list(case.kernel.arg_names)
    is_aligned = {
        name: kind.startswith("*") or name in case.divisible_by_16
        for name, kind in case.signature.items()
    }
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    missing = [n for n in names if n not in case.signature and n not in case.constexprs]
    if missing:
        raise ValueError(f"case '{case.name}': no type and no value for {missing}")
    source = ASTSource(
        fn=case.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in case.constexprs.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]]
            for name, aligned in is_aligned.items()
            if aligned
        },
    )
    options: dict[str, Any] = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    if backend == "cuda" and case.maxnreg is not None:
        options["maxnreg"] = case.maxnreg
    if backend == "hip":
        options["num_stages"] = min(case.num_stages, 2)
    chip: int | str = int(architecture) if backend == "cuda" else architecture
    gpu = GPUTarget(backend, chip, _WARP_SIZES[backend])
    return triton.compile(source, target=gpu, options=options)


def _read_cubin(compiled: Any) -> dict[str, int]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run(tools / "cuobjdump", "-res-usage", cubin)
        sass = _run(tools / "nvdisasm", "-c", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    local = len(re.findall(r"\b(?:LDL|STL)\b", sass))
    return {
        "registers": int(found[1]),
        "spill_bytes": int(found[2]) if local else 0,
        "wide_loads": len(re.findall(r"\bLDG\.[\w.]*128|\bLDGSTS\.[\w.]*128", sass)),
        "wide_stores": len(re.findall(r"\bSTG\.[\w.]*128", sass)),
    }


def _read_amdgcn(compiled: Any) -> dict[str, int]:
    code: str = compiled.asm["amdgcn"]
    registers = re.search(r"\.vgpr_count:\s+(\d+)", code)
    spills = re.search(r"\.vgpr_spill_count:\s+(\d+)", code)
    assert registers is not None
    assert spills is not None
    return {
        "registers": int(registers[1]),
        "spill_bytes": 4 * int(spills[1]),
        "wide_loads": len(re.findall(r"(?:global|buffer|flat)_load_dwordx4", code)),
        "wide_stores": len(re.findall(r"(?:global|buffer|flat)_store_dwordx4", code)),
    }


def _run(tool: Path, *arguments: object) -> str:
    return subprocess.run(
        [str(tool), *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


def _failure(case: AotCase, target: str, counts: Mapping[str, int]) -> str:
    if counts["spill_bytes"]:
        return f"spills {counts['spill_bytes']} bytes per thread"
    must_be_wide = case.needs_wide_loads in (True, target.split(":")[0])
    if must_be_wide and not counts["wide_loads"]:
        return "no 128-bit load"
    if target.startswith("cuda") and counts["registers"] > case.max_registers:
        return f"{counts['registers']} registers, more than {case.max_registers}"
    return ""


def main() -> int:
    """Compile what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m recemb.kernels.aot", description=__doc__)
    parser.add_argument("--kernel", action="append", help="folder; default: all")
    parser.add_argument("--target", action="append", help=f"default: {', '.join(TARGETS)}")
    parser.add_argument("--ends", action="store_true", help="a kernel's first and last case alone")
    parser.add_argument("--csv", help="also write the reports here")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise SystemExit("unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    reports = []
    for kernel in arguments.kernel or kernel_names():
        cases = cases_of(kernel)
        for case in [cases[0], cases[-1]] if arguments.ends else cases:
            for target in arguments.target or TARGETS:
                report = compile_case(case, target, kernel=kernel)
                reports.append(report)
                print(*dataclasses.astuple(report)[:-1], report.failure or "ok", sep="\t")  # noqa: T201
    if arguments.csv:
        with Path(arguments.csv).open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(AotReport)])
            writer.writeheader()
            writer.writerows(dataclasses.asdict(r) for r in reports)
    return int(any(r.failure for r in reports))


if __name__ == "__main__":
    sys.exit(main())
