"""TWIN: one table for the search and for what is summed.

    s_i = <e_i, v> / sqrt(D)     S = the K greatest     h = sum over S of softmax(s)_i e_i

Shapes: `B` examples, `L` places in a history, `K` retrieved.
"""

from typing import ClassVar

from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Sharing
from recemb.models.sequence.sequence_model import SequenceModel, Weights, searched


class TWIN(SequenceModel):
    """Search and attention by one score over one table.

    Source: Chang et al., "TWIN: TWo-stage Interest Network for Lifelong User Behavior Modeling in
    CTR Prediction at Kuaishou", KDD 2023, as DARE's released code has it for its comparison: no
    projections, one head of attention, no short-term branch.
    """

    sharing: ClassVar[Sharing] = "all"

    def weights(self, inputs: SequenceInputs) -> Weights:
        """Return the softmax over the K behaviours most like the target, and over all."""
        return searched(inputs, self.parts, self.top_k)

    def product_search(self) -> int | None:
        """Return K."""
        return self.top_k
