"""What is compiled ahead of time: every number of bits, one id and jagged, each output type."""

from recemb.kernels.aot import AotCase
from recemb.kernels.bag_tile import MAX_REGISTERS, bags_per_program
from recemb.kernels.quantized_bag.kernel import _quantized_bag_kernel, elements_per_program
from recemb.kernels.quantized_bag.reference import row_bytes


def aot_cases() -> list[AotCase]:
    """Return the configurations that must compile for every target."""
    return [
        _case(bits, width, out, jagged)
        for bits, width, out, jagged in [
            (8, 16, "fp32", False),
            (8, 64, "fp32", True),
            (8, 128, "bf16", True),
            (4, 64, "fp16", False),
            (4, 128, "fp32", True),
            (2, 64, "fp32", False),
            (2, 128, "bf16", True),
        ]
    ]


def _case(bits: int, width: int, out: str, jagged: bool) -> AotCase:
    signature = {"packed": "*u8", "halves": "*fp16", "values": "*i64", "offsets": "*i64"}
    signature |= {"weights": "*fp32", "out": f"*{out}"}
    signature |= dict.fromkeys(("num_bags", "num_examples", "num_features"), "i32")
    payload = width * bits // 8
    return AotCase(
        name=f"int{bits} D{width} {out} {'jagged weighted mean' if jagged else 'one id'}",
        kernel=_quantized_bag_kernel,
        signature=signature,
        constexprs={
            "P": payload,
            "LD": row_bytes(width, bits),
            "BITS": bits,
            "BLOCK_P": payload,
            "BLOCK_B": bags_per_program(width, 1 << 20, elements=elements_per_program(bits)),
            "UNROLL": 2 if jagged else 1,
            "JAGGED": jagged,
            "WEIGHTED": jagged,
            "MEAN": jagged,
        },
        maxnreg=MAX_REGISTERS,
        max_registers=MAX_REGISTERS,
        # AMD's four warps are 256 threads, each with 8 bytes or fewer.
        needs_wide_loads="cuda" if bits > 2 else False,
    )
