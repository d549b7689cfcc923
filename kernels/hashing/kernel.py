"""The hash in Triton: `hash_row`, for other kernels to call, and a kernel that only hashes.

Shapes: `N` keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def fmix32(h):
    """Return MurmurHash3's finaliser of `h`, uint32 of any shape."""
    h = (h ^ (h >> 16)) * tl.full([], 0x85EBCA6B, tl.uint32)
    h = (h ^ (h >> 13)) * tl.full([], 0xC2B2AE35, tl.uint32)
    return h ^ (h >> 16)


@triton.jit
def hash_row(x, seed, num_rows):
    """Return the row of each id, int64 in [0, num_rows).

    `x` is int32 or int64; `seed` int32 or int64 whose low 32 bits are the seed; `num_rows` any
    integer from 1 to 2^31 - 1. The shapes broadcast.
    """
    x = tl.cast(x, tl.int64)
    h = fmix32(tl.cast(x, tl.uint32) ^ tl.cast(seed, tl.uint32))
    h = fmix32(h ^ tl.cast(x >> 32, tl.uint32))
    return (tl.cast(h, tl.int64) * tl.cast(num_rows, tl.int64)) >> 32


@triton.jit
def _hash_rows_kernel(keys, seed, out, num_keys, num_rows, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_keys
    x = tl.load(keys + at, mask=inside, other=0)
    tl.store(out + at, hash_row(x, tl.load(seed), num_rows), mask=inside)


def hash_rows(keys: Tensor, seed: Tensor, num_rows: int) -> Tensor:
    """Return the row of each key (N,), int64.

    Args:
        keys: (N,) int64 or int32, contiguous.
        seed: one int64, the 32-bit seed, on the keys' device.
        num_rows: from 1 to 2^31 - 1.
    """
    out = torch.empty(keys.shape, dtype=torch.int64, device=keys.device)
    block = 1024
    grid = (triton.cdiv(keys.numel(), block),)
    if keys.numel():
        _hash_rows_kernel[grid](keys, seed, out, keys.numel(), num_rows, BLOCK=block, num_warps=4)
    return out
