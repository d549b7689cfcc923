"""How well attention scores rank behaviours, given what they are really worth.

Shapes: `B` examples, `L` places in a history.
"""

import torch
from torch import Tensor


def retrieval_ndcg(
    scores: Tensor,
    relevance: Tensor,
    is_valid: Tensor,
    k: int,
    *,
    ideal_k: int | None = None,
) -> Tensor:
    """Return the NDCG at `k` of each example's ranking (B,); NaN where nothing is relevant.

        DCG = sum over ranks r = 0 .. k - 1 of  relevance / log2(r + 2)

    Equal scores are ranked by place.

    Args:
        scores: (B, L).
        relevance: (B, L), not negative.
        is_valid: (B, L) which places hold a behaviour.
        k: ranks that count.
        ideal_k: ranks of the ideal ranking that it is divided by; None for `k`. DARE's released
            code divides by that at 20 whatever k is.

    Raises:
        ValueError: if k or ideal_k is below 1.
    """
    ideal_k = k if ideal_k is None else ideal_k
    if k < 1 or ideal_k < 1:
        raise ValueError(f"retrieval_ndcg: k must be at least 1, got {k} and {ideal_k}")
    gain = relevance.masked_fill(~is_valid, 0).double()
    ranked = scores.masked_fill(~is_valid, -torch.inf).sort(dim=1, descending=True, stable=True)
    return _dcg(gain.gather(1, ranked.indices), k) / _dcg(
        gain.sort(dim=1, descending=True).values, ideal_k
    )


def _dcg(gain: Tensor, k: int) -> Tensor:
    kept = gain[:, :k]
    return (kept / torch.log2(torch.arange(kept.shape[1], device=gain.device) + 2.0)).sum(1)
