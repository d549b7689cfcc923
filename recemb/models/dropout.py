"""Dropout whose mask costs a quarter of the random numbers on a CPU."""

import torch
from torch import Tensor, nn

_STEPS = 1 << 16


class Dropout(nn.Module):
    """Zero each value with probability `p` in training and scale the others by 1 / (1 - p).

    On a CPU, PyTorch draws one generator number per value for its dropout, which costs more than
    the matrix products beside it; here one 64-bit number serves four values, 16 bits each, so `p`
    is rounded to a multiple of 2**-16. Elsewhere it is `torch.nn.functional.dropout`.

    Args:
        p: probability of zeroing a value, in [0, 1).

    Raises:
        ValueError: if `p` is outside its range.

    Source: Srivastava et al., "Dropout", JMLR 15 (2014), section 4, in its inverted form.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be in [0, 1), got {p}; 0 switches it off")
        self.p = p

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs`, in training with values zeroed; any shape."""
        if not self.training or self.p == 0:
            return inputs
        if inputs.device.type != "cpu":
            return nn.functional.dropout(inputs, self.p)
        num_dropped = round(self.p * _STEPS)
        kept = _random_16_bits(inputs) >= num_dropped - _STEPS // 2
        return inputs * (kept * (_STEPS / (_STEPS - num_dropped))).to(inputs.dtype)


def _random_16_bits(like: Tensor) -> Tensor:
    """Return uniform int16 of the shape of `like`."""
    count = like.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[:count].view(like.shape)
