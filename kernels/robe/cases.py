"""What is compiled ahead of time: chunk sizes, aligned or not, signed or not, both ways."""

from recemb.kernels.aot import AotCase
from recemb.kernels.bag_tile import MAX_REGISTERS
from recemb.kernels.robe.kernel import _robe_bag_backward_kernel, _robe_bag_forward_kernel, tile


def aot_cases() -> list[AotCase]:
    """Return the configurations that must compile for every target."""
    kinds = [
        ("fp32", 16, 16, False, False),
        ("fp32", 64, 8, True, False),
        ("fp32", 64, 16, True, True),
        ("fp32", 16, 16, False, True),
        ("bf16", 128, 32, True, False),
        ("fp16", 64, 1, True, False),
    ]
    return [_case(backward, *kind) for kind in kinds for backward in (False, True)]


def _case(
    backward: bool, dtype: str, width: int, chunk_size: int, jagged: bool, aligned: bool
) -> AotCase:
    signature = {"grad": f"*{dtype}"} if backward else {}
    signature |= {"params": f"*{dtype}", "values": "*i64", "offsets": "*i64"}
    signature |= {"seeds": "*i64", "sign_seeds": "*i64", "weights": "*fp32"}
    if backward:
        signature |= {"grad_elements": "*fp32", "starts": "*i64", "grad_weights": "*fp32"}
    else:
        signature |= {"out": f"*{dtype}"}
    names = ("num_params", "num_bags", "num_examples", "num_features")
    signature |= dict.fromkeys(names, "i32")
    return AotCase(
        name=f"{'backward' if backward else 'forward'} {dtype} D{width} Z{chunk_size} "
        f"{'aligned' if aligned else 'unaligned'} "
        f"{'jagged signed weighted mean' if jagged else 'one id'}",
        kernel=_robe_bag_backward_kernel if backward else _robe_bag_forward_kernel,
        signature=signature,
        constexprs={
            **tile(width, chunk_size, 1 << 20),
            "JAGGED": jagged,
            "WEIGHTED": jagged,
            "MEAN": jagged,
            "SIGNED": jagged,
            "ALIGNED": aligned,
        },
        num_warps=4,
        maxnreg=MAX_REGISTERS,
        max_registers=MAX_REGISTERS,
        # Unaligned chunks cannot have them.
        needs_wide_loads=aligned and dtype == "fp32",
    )
