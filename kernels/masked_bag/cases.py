"""What is compiled ahead of time: widths, types, and every kind of mask, both ways."""

from recemb.kernels.aot import AotCase
from recemb.kernels.bag_tile import MAX_REGISTERS
from recemb.kernels.masked_bag.kernel import (
    _masked_bag_backward_kernel,
    _masked_bag_forward_kernel,
)

_MASKS = {
    "rows and widths by id": (True, True, False),
    "norms of prefixes": (True, True, False),
    "rows": (True, False, False),
    "widths by feature": (False, False, True),
}


def aot_cases() -> list[AotCase]:
    """Return the configurations that must compile for every target."""
    kinds = [
        ("fp32", 16, False, "rows and widths by id"),
        ("fp32", 64, True, "rows and widths by id"),
        ("fp32", 128, True, "norms of prefixes"),
        ("bf16", 128, True, "rows"),
        ("fp16", 64, False, "widths by feature"),
    ]
    return [
        _case(backward, dtype, width, jagged, masks)
        for dtype, width, jagged, masks in kinds
        for backward in (False, True)
    ]


def _case(backward: bool, dtype: str, width: int, jagged: bool, masks: str) -> AotCase:
    threshold, lookup_width, feature_width = _MASKS[masks]
    signature = {"grad": f"*{dtype}"} if backward else {}
    signature |= {
        "weight": f"*{dtype}",
        "values": "*i64",
        "offsets": "*i64",
        "thresholds": "*fp32",
        "lookup_widths": "*i32",
        "feature_widths": "*i32",
        "weights": "*fp32",
    }
    outputs = ("grad_rows", "bag_thresholds", "grad_weights")
    signature |= dict.fromkeys(outputs, "*fp32") if backward else {"out": f"*{dtype}"}
    signature |= dict.fromkeys(("num_rows", "num_bags", "num_examples", "num_features"), "i32")
    elements = 1024 if backward or (jagged and dtype == "fp32") else 2048
    return AotCase(
        name=f"{'backward' if backward else 'forward'} {dtype} D{width} "
        f"{'jagged weighted mean' if jagged else 'one id'} {masks}",
        kernel=_masked_bag_backward_kernel if backward else _masked_bag_forward_kernel,
        signature=signature,
        constexprs={
            "D": width,
            "BLOCK_D": width,
            "BLOCK_B": min(elements // width, 128),
            "UNROLL": 2 if jagged else 1,
            "JAGGED": jagged,
            "WEIGHTED": jagged,
            "MEAN": jagged,
            "THRESHOLD": threshold,
            "LOOKUP_WIDTH": lookup_width,
            "FEATURE_WIDTH": feature_width,
            "NORM": 2 if width == 128 else 1,
            "NORM_OF_PREFIX": masks == "norms of prefixes",
        },
        num_warps=4,
        maxnreg=MAX_REGISTERS,
        max_registers=MAX_REGISTERS,
        # On AMD, with 256 threads, each has 8 bytes of a row of halves in the backward pass.
        needs_wide_loads=dtype == "fp32" or not backward,
    )
