"""DIN: a network scores each behaviour against the target.

    s_i = MLP([v ; e_i ; v - e_i ; v * e_i]) / D

Shapes: `B` examples, `L` places in a history, `D` width of item and category side by side.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from recemb.models.sequence.attention import masked_softmax
from recemb.models.sequence.checks import at_least
from recemb.models.sequence.head import draw_all
from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, Sharing
from recemb.models.sequence.search import full_precision
from recemb.models.sequence.search import top_k as best
from recemb.models.sequence.sequence_model import SequenceModel, Weights

_SLOPE = 0.1


class DIN(SequenceModel):
    """Attention by a network, over what the target is and not when.

    Args:
        parts: what behaviours consist of.
        context_width: width of dense columns and features without a history.
        top_k: behaviours of the greatest scores, which alone are summed; None for all.
        attention_units: hidden layer of the network.
        hidden_units: of the head.
        auxiliary_units: of the auxiliary head; None for none.
        target_aware: whether the product of target and history is a feature.
        l2: on all parameters but biases and tables.
        init_std: of all these parameters; None draws them as their modules do.

    Raises:
        ValueError: on a number below its range.

    Source: Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018,
    section 4.3, in the form that DARE's released code compares with: a softmax over the scores, the
    20 best behaviours, no time. DIN itself sums all behaviours by their scores as they are.
    """

    sharing: ClassVar[Sharing] = "all"
    reads_time: ClassVar[bool] = False

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        context_width: int,
        top_k: int | None = 20,
        attention_units: int = 36,
        hidden_units: Sequence[int] = (200, 80),
        auxiliary_units: Sequence[int] | None = (200,),
        target_aware: bool = True,
        l2: float = 0.0,
        init_std: float | None = None,
    ) -> None:
        at_least("DIN", 1, attention_units=attention_units)
        super().__init__(
            parts=parts,
            context_width=context_width,
            top_k=top_k,
            hidden_units=hidden_units,
            auxiliary_units=auxiliary_units,
            target_aware=target_aware,
            l2=l2,
            init_std=init_std,
        )
        self.width = sum(p.attention.dim for p in self.parts)
        self.attention = nn.Sequential(
            nn.Linear(4 * self.width, attention_units),
            nn.PReLU(init=_SLOPE),
            # A bias would be the same for all behaviours, which a softmax does not see.
            nn.Linear(attention_units, 1, bias=False),
        )
        if init_std is not None:
            draw_all(self.attention, init_std)

    def weights(self, inputs: SequenceInputs) -> Weights:
        """Return the softmax over the best, and over all."""
        keys = [p.attention for p in self.parts]
        history = inputs.history(keys)
        target = inputs.target(keys).unsqueeze(1).expand_as(history)
        pairs = torch.cat([target, history, target - history, target * history], dim=2)
        with full_precision(pairs):
            scores = self.attention(pairs).squeeze(2) / self.width
        is_valid = inputs.is_valid
        full = masked_softmax(scores, is_valid)
        found = best(scores, is_valid, self.top_k)
        return Weights(retrieved=masked_softmax(scores, found), full=full)
