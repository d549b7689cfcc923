"""What is compiled ahead of time: lookups and lists of lookups."""

from typing import Any

from recemb.kernels.aot import AotCase
from recemb.kernels.bag.kernel import _bag_forward_kernel, _bag_rows_kernel
from recemb.kernels.bag.launch import choose_blocks

_INPUTS = {"values": "*i64", "offsets": "*i64", "weights": "*fp32", "slots": "*i64"}
_SIZES = {"batch_size": "i32", "num_slots": "i32"}
_POLICIES = {"trust": 0, "ignore": 1, "clamp": 2}


def aot_cases() -> list[AotCase]:
    """Return the configurations that must compile for every target."""
    return [
        *(_forward(dtype, width, 20.0) for dtype in ("fp32", "fp16", "bf16") for width in (16, 64)),
        _forward("fp32", 128, 20.0),
        _forward("fp16", 128, 20.0, out="fp16"),
        _forward("fp32", 64, 1000.0, policy="ignore", weighted=True, float64=True),
        _forward("fp32", 64, 20.0, policy="clamp", weighted=True, values="*i32"),
        _forward("fp32", 16, None),
        _forward("fp32", 64, None, policy="ignore"),
        _forward("bf16", 128, None, weighted=True),
        _forward("bf16", 64, 20.0, policy="ignore", weighted=True),
        _forward("fp32", 10, 20.0, max_registers=255),
        _rows("one id", ONE_ID=True, SCALED=False, WEIGHTED=False),
        _rows("jagged", ONE_ID=False, SCALED=False, WEIGHTED=False),
        _rows("jagged weighted ignore", ONE_ID=False, SCALED=True, WEIGHTED=True, POLICY=1),
    ]


def _forward(
    dtype: str,
    width: int,
    mean_length: float | None,
    *,
    out: str = "fp32",
    policy: str = "trust",
    weighted: bool = False,
    float64: bool = False,
    values: str = "*i64",
    max_registers: int = 128,
) -> AotCase:
    is_jagged = mean_length is not None
    itemsize = 4 if dtype == "fp32" else 2
    blocks = choose_blocks(width, itemsize, mean_length or 1.0, is_jagged=is_jagged)
    features = [policy, *(["weighted"] if weighted else []), *(["float64"] if float64 else [])]
    bags = f"bags of {mean_length:g}" if mean_length is not None else "one id"
    return AotCase(
        name=f"forward {dtype} {width} {bags} {' '.join(features)}",
        kernel=_bag_forward_kernel,
        signature={"weight": f"*{dtype}", **_INPUTS, "values": values, "out": f"*{out}", **_SIZES},
        constexprs={
            "D": width,
            "BLOCK_BAGS": blocks.bags,
            "BLOCK_D": 1 << (width - 1).bit_length(),
            "UNROLL": blocks.unroll,
            "ONE_ID": not is_jagged,
            "POLICY": _POLICIES[policy],
            "WEIGHTED": weighted,
            "FLOAT64": float64,
        },
        num_warps=blocks.num_warps,
        maxnreg=blocks.maxnreg,
        max_registers=max_registers,
        # Long bags: a program reads 512 bytes of rows at a time, 8 bytes per thread on AMD.
        needs_wide_loads=width % 16 == 0 and blocks.num_warps > 1,
    )


def _rows(name: str, **constexprs: Any) -> AotCase:
    one_id = constexprs["ONE_ID"]
    return AotCase(
        name=f"rows {name}",
        kernel=_bag_rows_kernel,
        signature={
            **_INPUTS,
            "rows": "*i32",
            "sources": "*i32",
            "scales": "*fp32",
            **_SIZES,
            "num_lookups": "i32",
            "sentinel": "i32",
        },
        constexprs={
            "BLOCK_BAGS": 256 if one_id else 32,
            "BLOCK_IDS": 1 if one_id else 16,
            "BLOCK_SLOTS": 128,
            "POLICY": 0,
            **constexprs,
        },
        max_registers=96,
    )
