"""What is compiled ahead of time: codes of several numbers of bits, one set and many, both ways."""

import torch

from recemb.kernels.aot import AotCase
from recemb.kernels.bag_tile import MAX_REGISTERS
from recemb.kernels.code_bag.kernel import (
    BACKWARD_ELEMENTS,
    FORWARD_ELEMENTS,
    _code_bag_backward_kernel,
    _code_bag_forward_kernel,
    tile,
)


def aot_cases() -> list[AotCase]:
    """Return the configurations that must compile for every target."""
    kinds = [
        ("fp32", 4, 4, 8, False, False),
        ("fp32", 8, 8, 8, True, False),
        ("fp32", 8, 8, 6, True, True),
        ("bf16", 8, 16, 8, True, True),
        ("fp16", 4, 16, 4, False, False),
        ("fp32", 32, 4, 5, True, False),
        ("fp32", 4, 16, 11, True, True),
        ("fp32", 16, 1, 1, False, True),
        ("fp32", 3, 20, 8, True, False),
    ]
    return [_case(backward, *kind) for kind in kinds for backward in (False, True)]


def _case(
    backward: bool,
    dtype: str,
    num_parts: int,
    part_width: int,
    bits: int,
    jagged: bool,
    per_feature: bool,
) -> AotCase:
    signature = {"grad": f"*{dtype}"} if backward else {}
    signature |= {"codes": "*u8", "codebooks": f"*{dtype}", "values": "*i64", "offsets": "*i64"}
    signature |= {"weights": "*fp32"}
    if backward:
        signature |= {"entries": "*i32", "sources": "*i64", "scales": "*fp32"}
        signature |= {"grad_weights": "*fp32"}
    else:
        signature |= {"out": f"*{dtype}"}
    signature |= dict.fromkeys(("num_bags", "num_examples", "num_features"), "i32")
    shape = torch.empty(num_parts, 2**bits, part_width, device="meta")
    elements = BACKWARD_ELEMENTS if backward else FORWARD_ELEMENTS
    options: dict[str, int] = {
        "JAGGED": jagged,
        "WEIGHTED": jagged,
        "MEAN": jagged,
        "PER_FEATURE": per_feature,
    }
    if not backward:
        options["UNROLL"] = 2 if jagged else 1
    itemsize = 4 if dtype == "fp32" else 2
    is_wide = part_width * itemsize >= 16 and (jagged or not backward)
    return AotCase(
        name=f"{'backward' if backward else 'forward'} {dtype} {num_parts} parts of {part_width} "
        f"{bits} bits {'jagged weighted mean' if jagged else 'one id'}"
        f"{' per feature' if per_feature else ''}",
        kernel=_code_bag_backward_kernel if backward else _code_bag_forward_kernel,
        signature=signature,
        constexprs=tile(shape, bits, 1 << 20, None, elements=elements) | options,
        maxnreg=MAX_REGISTERS,
        max_registers=MAX_REGISTERS,
        # Backward on AMD, with 256 threads, each has 8 bytes of a 16-bit row.
        needs_wide_loads="cuda" if is_wide and backward and itemsize == 2 else is_wide,
    )
