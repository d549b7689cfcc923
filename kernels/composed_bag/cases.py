"""What is compiled ahead of time: digits and hashes, every way to combine, both ways."""

from recemb.kernels.aot import AotCase
from recemb.kernels.bag_tile import MAX_REGISTERS, bags_per_program
from recemb.kernels.composed_bag.kernel import (
    _composed_bag_backward_kernel,
    _composed_bag_forward_kernel,
    elements_per_program,
)


def aot_cases() -> list[AotCase]:
    """Return the configurations that must compile for every target."""
    kinds = [
        ("fp32", 16, 2, False, "digits", "product"),
        ("fp32", 64, 2, True, "digits", "product"),
        ("fp32", 64, 2, True, "hash", "weighted"),
        ("bf16", 128, 3, True, "digits", "product"),
        ("fp16", 64, 2, False, "hash", "sum"),
    ]
    return [_case(backward, *kind) for kind in kinds for backward in (False, True)]


def _case(
    backward: bool, dtype: str, width: int, factors: int, jagged: bool, address: str, combine: str
) -> AotCase:
    signature = {"grad": f"*{dtype}"} if backward else {}
    signature |= {"weight": f"*{dtype}", "values": "*i64", "offsets": "*i64"}
    signature |= dict.fromkeys(("first_rows", "num_rows", "divisors", "seeds"), "*i64")
    signature |= {"importance": f"*{dtype}", "importance_offsets": "*i64", "weights": "*fp32"}
    if backward:
        signature |= {
            "grad_rows": "*fp32",
            "rows": "*i64",
            "grad_importance": "*fp32",
            "importance_rows": "*i64",
            "grad_weights": "*fp32",
        }
    else:
        signature |= {"out": f"*{dtype}"}
    signature |= dict.fromkeys(("num_bags", "num_examples", "num_features"), "i32")
    elements = elements_per_program(
        4 if dtype == "fp32" else 2, backward=backward, is_weighted=combine == "weighted"
    )
    return AotCase(
        name=f"{'backward' if backward else 'forward'} {dtype} D{width} K{factors} "
        f"{'jagged weighted mean' if jagged else 'one id'} {address} {combine}",
        kernel=_composed_bag_backward_kernel if backward else _composed_bag_forward_kernel,
        signature=signature,
        constexprs={
            "D": width,
            "BLOCK_D": width,
            "BLOCK_B": bags_per_program(width, 1 << 20, elements=elements),
            "K": factors,
            "JAGGED": jagged,
            "WEIGHTED": jagged,
            "MEAN": jagged,
            "DIGITS": address == "digits",
            "IMPORTANCE": combine == "weighted",
            "PRODUCT": combine == "product",
        },
        num_warps=4,
        maxnreg=MAX_REGISTERS,
        max_registers=MAX_REGISTERS,
        # On AMD, with 256 threads, the others have less than 16 bytes of a row for each.
        needs_wide_loads=dtype == "fp32" and not (backward and combine == "weighted"),
    )
