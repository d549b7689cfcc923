"""TWIN: one table for the search and for what is summed.

    s_i = <e_i, v> / sqrt(D)     S = the K greatest     h = sum over S of softmax(s)_i e_i

Shapes: `B` examples, `L` places in a history, `K` retrieved.
"""

from collections.abc import Sequence
from typing import ClassVar

from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, Sharing
from recemb.models.sequence.sequence_model import SequenceModel, Weights, searched


class TWIN(SequenceModel):
    """Search and attention by one score over one table.

    Args:
        parts: what behaviours consist of.
        context_width: width of dense columns and features without a history.
        top_k: K.
        hidden_units: of the head.
        auxiliary_units: of the auxiliary head; None for none.
        target_aware: whether the product of target and history is a feature.
        l2: on all parameters but biases and tables.
        init_std: of all these parameters; None draws them as `Head` does.

    Source: Chang et al., "TWIN: TWo-stage Interest Network for Lifelong User Behavior Modeling in
    CTR Prediction at Kuaishou", KDD 2023, as DARE's released code has it for its comparison: no
    projections, one head of attention, no short-term branch.
    """

    sharing: ClassVar[Sharing] = "all"

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        context_width: int,
        top_k: int = 20,
        hidden_units: Sequence[int] = (200, 80),
        auxiliary_units: Sequence[int] | None = (200,),
        target_aware: bool = True,
        l2: float = 0.0,
        init_std: float | None = None,
    ) -> None:
        super().__init__(
            parts=parts,
            context_width=context_width,
            hidden_units=hidden_units,
            auxiliary_units=auxiliary_units,
            target_aware=target_aware,
            l2=l2,
            init_std=init_std,
        )
        self.top_k = top_k

    def weights(self, inputs: SequenceInputs) -> Weights:
        """Return the softmax over the K behaviours most like the target, and over all."""
        return searched(inputs, self.parts, self.top_k)

    def product_search(self) -> int | None:
        """Return K."""
        return self.top_k
