"""SIM: a cheap search, then attention of several heads over what it found.

    hard:  S = the K most recent behaviours of the target's category
    soft:  S = the K greatest <A e_i, B v>

    h = concatenation over heads of  sum over S of softmax(<K_h e_i, Q_h v> / sqrt(D / H))_i V_h e_i

Shapes: `B` examples, `L` places in a history, `D` width of all parts, `H` heads.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from recemb.models.sequence.attention import masked_softmax, products
from recemb.models.sequence.checks import at_least
from recemb.models.sequence.head import draw_all
from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, Sharing, part_named
from recemb.models.sequence.search import full_precision, most_recent
from recemb.models.sequence.search import top_k as best
from recemb.models.sequence.sequence_model import SequenceModel, Weights

Search = Literal["hard", "soft"]


class SIM(SequenceModel):
    """Search by category or by a bilinear score, then attention of several heads.

    The auxiliary loss trains the soft search, whose softmax over the whole history it reads.

    Args:
        parts: what behaviours consist of.
        context_width: width of dense columns and features without a history.
        top_k: behaviours that are found.
        search: "hard" or "soft".
        num_heads: H, which divides D.
        hidden_units: of the head.
        auxiliary_units: of the auxiliary head; None for none.
        target_aware: whether the product of target and history is a feature.
        init_std: of all parameters but biases; None draws them as their modules do.

    Raises:
        ValueError: on an unknown search, soft search without the auxiliary loss, a number of heads
            that does not divide D, or, for hard search, if there is no column `category`.

    Source: Pi et al., "Search-based User Interest Modeling with Lifelong Sequential Behavior Data
    for Click-Through Rate Prediction", CIKM 2020, sections 3.1 and 3.2. Soft search is exact here
    and its scores go through a softmax in the auxiliary loss.
    """

    sharing: ClassVar[Sharing] = "all"

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        context_width: int,
        top_k: int | None = 20,
        search: Search = "soft",
        num_heads: int = 2,
        hidden_units: Sequence[int] = (200, 80),
        auxiliary_units: Sequence[int] | None = (200,),
        target_aware: bool = True,
        init_std: float | None = None,
    ) -> None:
        at_least("SIM", 1, num_heads=num_heads)
        if search == "soft" and auxiliary_units is None:
            raise ValueError(
                "SIM: soft search learns from the auxiliary loss alone; auxiliary_units=null would "
                "leave it random"
            )
        super().__init__(
            parts=parts,
            context_width=context_width,
            top_k=top_k,
            hidden_units=hidden_units,
            auxiliary_units=auxiliary_units,
            target_aware=target_aware,
            l2=0.0,
            init_std=init_std,
        )
        width = sum(p.attention.dim for p in self.parts)
        self.ranks_all = search == "soft"
        if search not in get_args(Search):
            raise ValueError(f"SIM: search must be one of {get_args(Search)}, got '{search}'")
        if width % num_heads:
            raise ValueError(f"SIM: num_heads must divide the width {width}, got {num_heads}")
        self.search: Search = search
        self.num_heads = num_heads
        self.category = part_named(self.parts, "category", "SIM") if search == "hard" else None
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        # One matrix A'B: only the product of the two is seen.
        self.bilinear = nn.Linear(width, width, bias=False) if search == "soft" else None
        if init_std is not None:
            for layer in (self.query, self.key, self.value, self.bilinear):
                if layer is not None:
                    draw_all(layer, init_std)

    def weights(self, inputs: SequenceInputs) -> Weights:
        """Return each head's softmax over what is found, (B, H, L), and the search's over all."""
        keys = [p.attention for p in self.parts]
        history, target, is_valid = inputs.history(keys), inputs.target(keys), inputs.is_valid
        if self.bilinear is not None:
            with full_precision(history):
                relevance = products(history, self.bilinear(target))
            relevance = relevance / math.sqrt(history.shape[2])
            found = best(relevance, is_valid, self.top_k)
            full = masked_softmax(relevance, is_valid)
        else:
            assert self.category is not None
            wanted = inputs.ids[self.category.target].unsqueeze(1)
            is_same = inputs.ids[self.category.history] == wanted
            found = most_recent(is_same, is_valid & is_same, self.top_k)
            full = is_valid / is_valid.sum(1, keepdim=True).clamp(min=1)
        # <K_h e, Q_h v> = <e, K_h' Q_h v>, so that no map reads the history.
        heads = torch.unflatten(self.query(target), 1, (self.num_heads, -1))
        maps = torch.unflatten(self.key.weight, 0, (self.num_heads, -1))
        mapped = torch.einsum("bhk,hkd->bhd", heads, maps)
        scores = torch.bmm(mapped, history.transpose(1, 2)) / math.sqrt(heads.shape[2])
        mask = found.unsqueeze(1).expand_as(scores).flatten(0, 1)
        softmax = masked_softmax(scores.flatten(0, 1), mask)
        return Weights(retrieved=softmax.view_as(scores), full=full)

    def features(self, sums: Tensor, target: Tensor, context: Tensor) -> Tensor:
        """Return what the heads read; sums of several heads (B, H, D) are mapped head by head."""
        if sums.dim() == 3:
            maps = torch.unflatten(self.value.weight, 0, (self.num_heads, -1))
            sums = torch.einsum("bhd,hkd->bhk", sums, maps).flatten(1)
        return super().features(sums, target, context)
