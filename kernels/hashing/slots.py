"""Hashed addresses of many lookups at once, compiled by Inductor where that pays.

Shapes: `S` lookups, `n` ids of each.
"""

import torch
from torch import Tensor

from recemb.kernels.compiled import compile_for_cpu

COMPILE_FROM = 1 << 15
"""Ids from which a batch is hashed by compiled code: below, PyTorch's own operations take less than
a millisecond, and nobody waits for a compiler."""


def hash_slots(keys: Tensor, seeds: Tensor, num_rows: Tensor, first_rows: Tensor) -> Tensor:
    """Return first_row + hash of each key, (S, n) of the dtype of `first_rows`.

    The bits do not depend on whether the code is compiled. Compilation happens once in a process,
    at the first batch of COMPILE_FROM ids on a CPU, and takes some seconds unless Inductor's cache
    has the result.

    Args:
        keys: (S, n) int64, any values.
        seeds: (S, 1) int64, 32-bit seeds.
        num_rows: (S, 1) int64.
        first_rows: (S, 1) int32 or int64, what is added.
    """
    if keys.numel() < COMPILE_FROM or keys.device.type != "cpu" or torch.compiler.is_compiling():
        return _hash_slots(keys, seeds, num_rows, first_rows)
    rows: Tensor = compile_for_cpu(_hash_slots)(keys, seeds, num_rows, first_rows)
    return rows


def _hash_slots(keys: Tensor, seeds: Tensor, num_rows: Tensor, first_rows: Tensor) -> Tensor:
    """Return what `reference.hash_rows` returns, plus first rows, on lanes of 32 bits.

    They take two thirds of the time of 64-bit lanes, which vector units multiply slowly. Products
    wrap, and shifts of negative numbers are masked, so the bits are those of uint32.
    """
    h = _fmix32(keys.to(torch.int32) ^ seeds.to(torch.int32))
    h = _fmix32(h ^ (keys >> 32).to(torch.int32))
    return (((h.long() & 0xFFFFFFFF) * num_rows) >> 32).to(first_rows.dtype) + first_rows


def _fmix32(h: Tensor) -> Tensor:
    h = (h ^ ((h >> 16) & 0xFFFF)) * (0x85EBCA6B - 2**32)
    h = (h ^ ((h >> 13) & 0x7FFFF)) * (0xC2B2AE35 - 2**32)
    return h ^ ((h >> 16) & 0xFFFF)
