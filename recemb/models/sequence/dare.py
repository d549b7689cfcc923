"""DARE: one table for the search, another one for what is summed.

    s_i = <a_i, a_t> / sqrt(A)     S = the K greatest     h = sum over S of softmax(s)_i e_i

with attention vectors a, of width A, and representation vectors e.

Shapes: `B` examples, `L` places in a history, `K` retrieved.
"""

from collections.abc import Sequence
from typing import ClassVar

from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, Sharing, Width
from recemb.models.sequence.sequence_model import SequenceModel, Weights, searched


class DARE(SequenceModel):
    """Search and attention by attention vectors, sums of representation vectors.

    Narrow attention vectors make the search cheap: it reads nothing else of the behaviours that it
    does not find.

    Args:
        parts: what behaviours consist of.
        context_width: width of dense columns and features without a history.
        attention_dim: width of attention vectors, one for all or by target column; None for the
            experiment's embedding_dim. The tables have it from `table_specs`.
        representation_dim: likewise, of representation vectors.
        top_k: K.
        hidden_units: of the head.
        auxiliary_units: of the auxiliary head; None for none.
        target_aware: whether the product of target and history is a feature.
        l2: on all parameters but biases and tables.
        init_std: of all these parameters; None draws them as `Head` does.

    Source: Feng et al., "Long-Sequence Recommendation Models Need Decoupled Embeddings", ICLR 2025,
    section 4.
    """

    sharing: ClassVar[Sharing] = "none"

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        context_width: int,
        attention_dim: Width = None,
        representation_dim: Width = None,
        top_k: int | None = 20,
        hidden_units: Sequence[int] = (200, 80),
        auxiliary_units: Sequence[int] | None = (200,),
        target_aware: bool = True,
        l2: float = 0.0,
        init_std: float | None = None,
    ) -> None:
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
        self.attention_dim = attention_dim
        self.representation_dim = representation_dim

    def weights(self, inputs: SequenceInputs) -> Weights:
        """Return the softmax over the K behaviours most like the target, and over all."""
        return searched(inputs, self.parts, self.top_k)

    def product_search(self) -> int | None:
        """Return K."""
        return self.top_k
