"""Memory for large buffers."""

import math

import numpy as np
import torch
from torch import Tensor

_HUGE_BYTES = 1 << 22
_ALIGNMENT_BYTES = 64


def allocate(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return an uninitialised tensor, on huge pages where the system has them.

    Lookups are random reads, which with pages of 4 KB spend a good part of their time on
    translating addresses. numpy asks Linux for huge pages for arrays of 4 MB and more; torch does
    so only if an environment variable was set before it started.
    """
    num_bytes = dtype.itemsize * math.prod(shape)
    if device.type != "cpu" or num_bytes < _HUGE_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = np.empty(num_bytes + _ALIGNMENT_BYTES, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT_BYTES
    return torch.from_numpy(memory[first : first + num_bytes]).view(dtype).view(shape)
