"""The search stage: which behaviours are most like the target.

Shapes: `B` examples, `L` places in a history, `K` retrieved.
"""

import torch
from torch import Tensor

_INT32_SIGN = 2**31


def full_precision(like: Tensor) -> torch.autocast:
    """Return a context in which what ranks behaviours is computed as in serving, never in bfloat16.

    Args:
        like: on the device where that is computed.
    """
    return torch.autocast(like.device.type, enabled=False)


def top_k(scores: Tensor, is_valid: Tensor, k: int | None) -> Tensor:
    """Return which places (B, L) bool hold the K greatest scores; fewer where fewer are valid.

    Of equal scores the lower place wins, on every device, so that the result is a function of the
    scores alone. Padding is never among them. There is no gradient through the selection.

    Args:
        scores: (B, L) float32, no NaN.
        is_valid: (B, L) which places hold a behaviour.
        k: K, at least 1; may exceed L; None for all.
    """
    if k is None or k >= scores.shape[1]:
        return is_valid
    places = _best(scores, is_valid, k)
    return torch.zeros_like(is_valid).scatter_(1, places, True) & is_valid


def top_places(scores: Tensor, is_valid: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return where the K greatest scores are, as `top_k` ranks them, for reading those alone.

    Returns:
        The places (B, min(K, L)), ascending, then L - 1 where there is none; and which of them are
        found.
    """
    size = scores.shape[1]
    places = _best(scores, is_valid, min(k, size))
    places = torch.where(is_valid.gather(1, places), places, size).sort(1).values
    return places.clamp(max=size - 1), places < size


def most_recent(is_same: Tensor, is_valid: Tensor, k: int | None) -> Tensor:
    """Return which places (B, L) bool hold the K most recent behaviours of the same kind.

    Where there are fewer, the most recent others fill the rest.

    Args:
        is_same: (B, L) which behaviours are of that kind.
        is_valid: (B, L) which places hold a behaviour, the oldest first.
        k: K; None for all.
    """
    size = is_same.shape[1]
    place = torch.arange(size, device=is_same.device)
    # Exact in float32 up to 2**23 places.
    return top_k((place + size * is_same).float(), is_valid, k)


def _best(scores: Tensor, is_valid: Tensor, k: int) -> Tensor:
    """Return the places (B, K) of the greatest scores in any order, padding where too few."""
    # No two keys are equal, so nothing is left to topk's own order.
    keys = torch.where(is_valid, _ordered(scores.detach()), torch.iinfo(torch.int64).min)
    return keys.topk(k, sorted=False).indices


def _ordered(scores: Tensor) -> Tensor:
    """Return distinct integers (B, L) in the order of the scores, lower places first.

    The bits of a float, the lower ones inverted if it is negative, are integers in the order of the
    floats.
    """
    bits = (scores.float() + 0.0).contiguous().view(torch.int32).long()
    bits = torch.where(bits < 0, bits.bitwise_xor(_INT32_SIGN - 1), bits)
    size = scores.shape[1]
    return bits * size + (size - 1 - torch.arange(size, device=scores.device))
