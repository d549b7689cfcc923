"""What is compiled ahead of time: the gradient of per-sample weights."""

from recemb.kernels.aot import AotCase
from recemb.kernels.bag_weight_gradient.kernel import _bag_weight_gradient_kernel


def aot_cases() -> list[AotCase]:
    """Return the configurations that must compile for every target."""
    return [
        *(_case(dtype, width) for dtype in ("fp32", "fp16", "bf16") for width in (16, 64, 128)),
        _case("fp32", 64, one_id=True),
        _case("fp32", 64, policy=1),
    ]


def _case(dtype: str, width: int, *, one_id: bool = False, policy: int = 0) -> AotCase:
    features = f"{' one id' if one_id else ''}{' ignore' if policy else ''}"
    return AotCase(
        name=f"weight gradient {dtype} {width}{features}",
        kernel=_bag_weight_gradient_kernel,
        signature={
            "weight": f"*{dtype}",
            "values": "*i64",
            "offsets": "*i64",
            "slots": "*i64",
            "grad": "*fp32",
            "out": "*fp32",
            "batch_size": "i32",
            "num_slots": "i32",
        },
        constexprs={
            "D": width,
            "BLOCK_BAGS": min(64, 1024 // width),
            "BLOCK_D": width,
            "BLOCK_SLOTS": 128,
            "ONE_ID": one_id,
            "POLICY": policy,
        },
        maxnreg=128,
        max_registers=128,
        needs_wide_loads=True,
    )
