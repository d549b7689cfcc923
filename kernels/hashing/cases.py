"""What is compiled ahead of time: the hash by itself."""

from recemb.kernels.aot import AotCase
from recemb.kernels.hashing.kernel import _hash_rows_kernel


def aot_cases() -> list[AotCase]:
    """Return the configurations that must compile for every target."""
    return [
        AotCase(
            name=f"hash {keys}",
            kernel=_hash_rows_kernel,
            signature={
                "keys": f"*{keys}",
                "seed": "*i64",
                "out": "*i64",
                "num_keys": "i32",
                "num_rows": "i32",
            },
            constexprs={"BLOCK": 1024},
            num_warps=4,
            max_registers=64,
            needs_wide_loads=True,
            divisible_by_16=("num_keys",),
        )
        for keys in ("i32", "i64")
    ]
