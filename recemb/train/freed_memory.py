"""What becomes of memory that a step frees: kept for the next step, or given back.

glibc's malloc maps every block of 32 MB or more from the operating system, at first every one of
128 KB, and unmaps it when it is freed. A training step allocates the same large blocks again and
again, so each of their pages is cleared by the kernel anew in every step.
"""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3  # from <malloc.h>, as is the other
KEPT_BYTES = 2**30
_MOST_BYTES_OF_OLD = 2**25
"""The largest threshold of mapping that glibc before 2.35 takes."""


def keep_freed_memory() -> bool:
    """Have malloc keep up to 1 GiB of freed memory, and map blocks from 1 GiB on alone.

    Before glibc 2.35 blocks from 32 MiB on are still mapped.

    It holds for the whole process, from now on. The process then holds the most that it had in use,
    and what lies between blocks that are still in use. benchmarks/training/sequence_step.py
    measures both.

    Returns:
        Whether the C library takes the setting; of those that are common, glibc alone does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (
        AttributeError,
        OSError,
        TypeError,
    ):  # musl and macOS have none, Windows no such library
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # The threshold of mapping comes first: setting the other ends malloc's own adaptation of both,
    # which alone would leave every block of 128 KB to be mapped anew.
    if not any(mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in (KEPT_BYTES, _MOST_BYTES_OF_OLD)):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES) == 1)
