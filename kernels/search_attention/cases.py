"""What is compiled ahead of time: the one launch, and each of the several, by width and type."""

from typing import Any

from recemb.kernels.aot import AotCase
from recemb.kernels.bag_tile import MAX_REGISTERS
from recemb.kernels.search_attention.kernel import (
    _search_attention_kernel,
    _search_dots_kernel,
    _search_select_kernel,
    _search_sum_kernel,
    selection_options,
)


def aot_cases() -> list[AotCase]:
    """Return the configurations that must compile for every target."""
    return [
        *(_fused(dtype, width, size) for dtype, width, size in _FUSED),
        *(_dots(dtype, width, selected) for dtype, width, selected in _DOTS),
        *(_select(size) for size in (256, 2048, 8192)),
        *(_sum(dtype, width) for dtype, width in (("fp32", 16), ("fp32", 64), ("bf16", 128))),
    ]


_FUSED = [("fp32", 16, 256), ("fp32", 64, 256), ("fp16", 64, 1024), ("bf16", 128, 2048)]
_DOTS = [
    ("fp32", 16, False),
    ("fp32", 64, True),
    ("fp32", 128, False),
    ("bf16", 128, True),
    ("fp16", 64, False),
]


def _fused(dtype: str, width: int, size: int) -> AotCase:
    block = _rows_of_a_tile(width)
    return _case(
        f"one launch {dtype} D{width} L{size}",
        _search_attention_kernel,
        {
            "attention": f"*{dtype}",
            "representation": f"*{dtype}",
            "ids": "*i64",
            "lengths": "*i64",
            "target": "*fp32",
            "scores": "*fp32",
            "positions": "*i64",
            "probabilities": "*fp32",
            "out": f"*{dtype}",
            **_integers("size", "k", "num_attention_rows", "num_representation_rows"),
        },
        {"DA": width, "BLOCK_DA": width, "BLOCK_A": block}
        | {"DR": width, "BLOCK_DR": width, "BLOCK_R": block}
        | {"BLOCK_L": size, "BLOCK_K": 32},
        warps=_warps(size),
        is_wide=True,
    )


def _dots(dtype: str, width: int, selected: bool) -> AotCase:
    return _case(
        f"dots {dtype} D{width} {'selected, added' if selected else 'history'}",
        _search_dots_kernel,
        {
            "table": f"*{dtype}",
            "ids": "*i32",
            "positions": "*i64",
            "lengths": "*i32",
            "vector": f"*{dtype}",
            "scores": "*fp32",
            **_integers("size", "k", "num_rows", "vector_stride"),
        },
        _tile(width) | {"SELECTED": selected, "ADD": selected},
        is_wide=True,
    )


def _select(size: int) -> AotCase:
    return _case(
        f"selection L{size}",
        _search_select_kernel,
        {"scores": "*fp32", "lengths": "*i64", "positions": "*i64", "probabilities": "*fp32"}
        | _integers("size", "k"),
        {"BLOCK_L": size, "BLOCK_K": 32},
        warps=_warps(size),
        is_wide=False,
    )


def _sum(dtype: str, width: int) -> AotCase:
    return _case(
        f"sum {dtype} D{width}",
        _search_sum_kernel,
        {
            "table": f"*{dtype}",
            "ids": "*i64",
            "positions": "*i64",
            "coefficients": "*fp32",
            "out": f"*{dtype}",
            **_integers("size", "k", "num_rows", "out_stride"),
        },
        _tile(width),
        is_wide=True,
    )


def _case(
    name: str,
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    *,
    is_wide: bool,
    warps: int = 4,
) -> AotCase:
    return AotCase(
        name=name,
        kernel=kernel,
        signature=signature,
        constexprs=constexprs,
        num_warps=warps,
        maxnreg=MAX_REGISTERS,
        max_registers=MAX_REGISTERS,
        needs_wide_loads=is_wide,
    )


def _integers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


def _tile(width: int) -> dict[str, int]:
    return {"D": width, "BLOCK_D": width, "BLOCK": _rows_of_a_tile(width)}


def _rows_of_a_tile(width: int) -> int:
    return min(2048 // width, 128)


def _warps(size: int) -> int:
    warps = selection_options(size, k=32)["num_warps"]
    assert isinstance(warps, int)
    return warps
