"""What a quantised table must look like; the messages name the function that was called.

Shapes: `R` rows, `LD` bytes of a row.
"""

import torch
from torch import Tensor

from recemb.kernels.quantized_bag.reference import row_bytes


def check_width(owner: str, width: int, bits: int) -> None:
    """Raise unless rows of `width` elements in `bits` bits are whole bytes.

    Raises:
        ValueError: if they are not, or bits is neither 8, 4 nor 2.
    """
    if bits not in (2, 4, 8):
        raise ValueError(f"{owner}: bits must be 2, 4 or 8, got {bits}")
    if width < 1 or width % (8 // bits):
        raise ValueError(
            f"{owner}: {bits} bits need a width that is a positive multiple of {8 // bits}, "
            f"got {width}; pad the rows"
        )


def check_packed(owner: str, packed: Tensor, width: int, bits: int) -> None:
    """Raise unless `packed` is (R, LD) uint8 for that width.

    Raises:
        ValueError: if it is not.
    """
    check_width(owner, width, bits)
    stored = row_bytes(width, bits)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != stored:
        raise ValueError(
            f"{owner}: packed must be (R, {stored}) uint8 for width {width} in {bits} bits, "
            f"got {tuple(packed.shape)} {packed.dtype}; make it by quantize_rows"
        )
