"""What is compiled ahead of time: every optimizer, the table types and widths in use."""

from typing import Any

from recemb.kernels.aot import AotCase
from recemb.kernels.bag_update import kernel
from recemb.kernels.bag_update.launch import CHUNK, FAN, choose_tiles

_INPUTS = {
    "grad": "*fp32",
    "sorted_rows": "*i32",
    "permutation": "*i64",
    "sources": "*i64",
    "scales": "*fp32",
}
_NUMBERS = {"seed": "i32", "num_lookups": "i32", "num_rows": "i32"}


def aot_cases() -> list[AotCase]:
    """Return the configurations that must compile for every target."""
    short = [
        ("sgd", "none", 64, "fp32"),
        ("rowwise_adagrad", "none", 16, "fp32"),
        ("rowwise_adagrad", "l2", 128, "bf16"),
        ("rowwise_adagrad", "none", 1024, "fp32"),
        ("adam", "decoupled", 128, "fp16"),
        ("rowwise_adam", "none", 64, "fp32"),
        ("none", "none", 64, "fp32"),
    ]
    return [
        *(_short_case(*step) for step in short),
        _long_case("rowwise_adagrad", "none", 16, "fp32"),
        _long_case("rowwise_adagrad", "l2", 128, "bf16"),
        _long_case("adam", "decoupled", 1024, "fp16"),
        _long_case("none", "none", 64, "fp32"),
        *(_partial_case(width) for width in (16, 64, 128)),
        _super_case(64),
    ]


def _scheme(width: int) -> dict[str, Any]:
    return {"D": width, "BLOCK_D": choose_tiles(width).columns, "CH": CHUNK}


def _step_flags(optimizer: str, weight_decay_mode: str, dtype: str) -> dict[str, Any]:
    return {
        "HAS_SOURCES": True,
        "HAS_SCALES": True,
        "RANKED": optimizer == "none",
        "OPT": optimizer,
        "WD": weight_decay_mode,
        "ROUND": dtype != "fp32",
    }


def _targets(dtype: str) -> dict[str, str]:
    return {
        "ranks": "*i64",
        "weight": f"*{dtype}",
        "state0": "*fp32",
        "state1": "*fp32",
        "hyper": "*fp64",
    }


def _short_case(optimizer: str, weight_decay_mode: str, width: int, dtype: str) -> AotCase:
    tiles = choose_tiles(width)
    return AotCase(
        name=f"short {optimizer} {weight_decay_mode} {dtype} D{width}",
        kernel=kernel._short_runs_kernel,
        signature={**_INPUTS, **_targets(dtype), **_NUMBERS},
        constexprs={
            **_scheme(width),
            **_step_flags(optimizer, weight_decay_mode, dtype),
            "BLOCK_P": tiles.positions,
            "UNROLL": tiles.unroll,
            "LOG_CH": CHUNK.bit_length() - 1,
        },
        max_registers=96,
        needs_wide_loads=True,
    )


def _long_case(optimizer: str, weight_decay_mode: str, width: int, dtype: str) -> AotCase:
    return AotCase(
        name=f"long {optimizer} {weight_decay_mode} {dtype} D{width}",
        kernel=kernel._long_runs_kernel,
        signature={
            **_INPUTS,
            **_targets(dtype),
            "partial": "*fp32",
            "super_partial": "*fp32",
            **_NUMBERS,
        },
        constexprs={
            **_scheme(width),
            **_step_flags(optimizer, weight_decay_mode, dtype),
            "FAN": FAN,
            "ROWS": choose_tiles(width).sum_rows,
            "HAS_SUPER": True,
        },
        max_registers=160,
        needs_wide_loads=True,
    )


def _partial_case(width: int) -> AotCase:
    return AotCase(
        name=f"partial D{width}",
        kernel=kernel._partial_sums_kernel,
        signature={**_INPUTS, "partial": "*fp32", "num_rows": "i32"},
        constexprs={
            **_scheme(width),
            "ROWS": choose_tiles(width).sum_rows,
            "HAS_SOURCES": True,
            "HAS_SCALES": True,
        },
        max_registers=128,
        needs_wide_loads=width >= 64,
    )


def _super_case(width: int) -> AotCase:
    return AotCase(
        name=f"super D{width}",
        kernel=kernel._super_sums_kernel,
        signature={
            "sorted_rows": "*i32",
            "partial": "*fp32",
            "super_partial": "*fp32",
            "num_rows": "i32",
        },
        constexprs={**_scheme(width), "FAN": FAN, "ROWS": choose_tiles(width).sum_rows},
        max_registers=128,
        needs_wide_loads=True,
    )
