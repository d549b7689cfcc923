"""The seeded hash of ids to rows: bit-identical in torch, numpy, Triton and Inductor.

Shapes: `N` keys.
"""

from recemb.kernels.hashing.reference import MAX_ROWS, fmix32, hash_rows

__all__ = ["MAX_ROWS", "fmix32", "hash_rows"]
