"""BST: a transformer over the most recent behaviours and the target.

Shapes: `B` examples, `L` places in a history, `T` places that are read, `D` width of all parts.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recemb.models.sequence.checks import at_least
from recemb.models.sequence.head import Head
from recemb.models.sequence.history_model import HistoryModel
from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, Sharing

_SLOPE = 0.01


class BST(HistoryModel):
    """One transformer block over the last behaviours and, behind them, the target.

    The head reads what the block makes of the target, of the behaviours in the mean, and the target
    itself. BST reads them all side by side, which a history of any length does not allow.

    Args:
        parts: what behaviours consist of.
        context_width: width of dense columns and features without a history.
        max_history: T - 1, the most recent behaviours that are read.
        num_heads: of the attention; divides D.
        dropout: in the block.
        hidden_units: of the head.

    Raises:
        ValueError: if `num_heads` does not divide D, or a number is below 1.

    Source: Chen et al., "Behavior Sequence Transformer for E-commerce Recommendation in Alibaba",
    DLP-KDD 2019, section 2.
    """

    sharing: ClassVar[Sharing] = "all"

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        context_width: int,
        max_history: int = 20,
        num_heads: int = 2,
        dropout: float = 0.0,
        hidden_units: Sequence[int] = (200, 80),
    ) -> None:
        super().__init__(parts=parts, context_width=context_width)
        at_least("BST", 1, max_history=max_history, num_heads=num_heads)
        self.max_history = max_history
        self.num_heads = num_heads
        self.dropout = dropout
        width = sum(p.representation.dim for p in self.parts)
        if width % num_heads:
            raise ValueError(f"BST: num_heads must divide the width {width}, got {num_heads}")
        self.mixed = nn.Linear(width, 3 * width)
        self.joined = nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.forward_layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.LeakyReLU(_SLOPE), nn.Linear(4 * width, width)
        )
        self.head = Head(3 * width + context_width, hidden_units)

    def logits_of(self, inputs: SequenceInputs) -> Tensor:
        """Return the logits (B,)."""
        keys = [p.representation for p in self.parts]
        history, target = inputs.history(keys), inputs.target(keys)
        size = min(self.max_history, history.shape[1])
        back = torch.arange(size, 0, -1, device=target.device)
        places = inputs.lengths.unsqueeze(1) - back
        is_read = places >= 0
        index = places.clamp(min=0).unsqueeze(2).expand(-1, -1, history.shape[2])
        recent = history.gather(1, index) * is_read.unsqueeze(2)
        tokens = torch.cat([recent, target.unsqueeze(1)], dim=1)
        mask = F.pad(is_read, (0, 1), value=True)
        made = self._block(tokens, mask)
        counts = is_read.sum(1, keepdim=True).clamp(min=1)
        mean = (made[:, :-1] * is_read.unsqueeze(2)).sum(1) / counts
        logits: Tensor = self.head(torch.cat([made[:, -1], mean, target, inputs.context], dim=1))
        return logits

    def _block(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return what the transformer makes of tokens (B, T, D) where `mask` (B, T) holds."""
        num, size, width = tokens.shape
        heads = torch.unflatten(self.mixed(tokens), 2, (3, self.num_heads, -1))
        heads = heads.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        query, key, value = heads.unbind(0)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask[:, None, None, :], dropout_p=dropout
        )
        joined = self.joined(attended.transpose(1, 2).reshape(num, size, width))
        tokens = self.norms[0](tokens + F.dropout(joined, self.dropout, self.training))
        again = F.dropout(self.forward_layers(tokens), self.dropout, self.training)
        made: Tensor = self.norms[1](tokens + again)
        return made
