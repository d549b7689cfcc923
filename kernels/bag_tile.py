"""What the pooling kernels share in Triton: the bags of a program, and the shape of its tile.

Shapes: `BLOCK_B` bags of a program, as a column (BLOCK_B, 1); `BLOCK_D` >= D columns of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels read; they add in float32."""

MAX_REGISTERS = 128
"""Per thread: four programs of four warps on a multiprocessor with 65,536."""


@triton.jit
def bag_bounds(offsets, bag, inside, JAGGED: tl.constexpr):
    """Return the first position (int64) and the number of ids (int32) of each bag."""
    if JAGGED:
        start = tl.load(offsets + bag, mask=inside, other=0).to(tl.int64)
        stop = tl.load(offsets + bag + 1, mask=inside, other=0).to(tl.int64)
        length = (stop - start).to(tl.int32)
    else:
        start = bag
        length = inside.to(tl.int32)
    return start, length


@triton.jit
def load_id(values, position, is_id):
    """Return the ids at `position`, int64; -1 where there is none."""
    return tl.load(values + position, mask=is_id, other=-1).to(tl.int64)


def check_weight(owner: str, weight: Tensor) -> None:
    """Raise if the kernels cannot read `weight`.

    Raises:
        ValueError: if it is neither float32, float16 nor bfloat16, or not contiguous.
    """
    if weight.dtype not in WEIGHT_DTYPES:
        raise ValueError(
            f"{owner}: the kernel reads {WEIGHT_DTYPES}, got {weight.dtype}; "
            "convert the weights or run on a CPU"
        )
    if not weight.is_contiguous():
        raise ValueError(f"{owner}: weights must be contiguous; call .contiguous() once, not here")


def launch_options() -> dict[str, object]:
    """Return warps, and on CUDA the register limit that makes the compiler load rows ahead.

    Left alone it saves registers, loads row after row, and in one case spilled to do so.
    """
    return {"num_warps": 4} if torch.version.hip else {"num_warps": 4, "maxnreg": MAX_REGISTERS}


def bags_per_program(width: int, num_bags: int, *, elements: int = 2048) -> int:
    """Return BLOCK_B: by default 2048 elements per program of four warps, 16 per thread.

    More than 32 per thread spill registers; kernels that hold several rows at once ask for fewer.
    Few bags make a smaller block.
    """
    block = max(elements // triton.next_power_of_2(width), 1)
    return int(min(block, 128, triton.next_power_of_2(max(num_bags, 1))))
