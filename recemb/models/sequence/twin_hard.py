"""TWIN with hard search: what is of the target's category, the most recent first.

Shapes: `B` examples, `L` places in a history.
"""

from collections.abc import Sequence
from typing import ClassVar

from recemb.models.sequence.attention import dot_scores, masked_softmax
from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, Sharing, part_named
from recemb.models.sequence.search import most_recent
from recemb.models.sequence.sequence_model import SequenceModel, Weights


class TWINHard(SequenceModel):
    """Attention over the K most recent behaviours of the target's category.

    Where there are fewer, other recent ones fill the rest.

    Args:
        parts: what behaviours consist of.
        context_width: width of dense columns and features without a history.
        top_k: behaviours that are found.
        category: the column that must be equal.
        hidden_units: of the head.
        auxiliary_units: of the auxiliary head; None for none.
        target_aware: whether the product of target and history is a feature.
        l2: on all parameters but biases and tables.
        init_std: of all these parameters; None draws them as their modules do.

    Raises:
        ValueError: if there is no such column.

    Source: Feng et al., "Long-Sequence Recommendation Models Need Decoupled Embeddings", ICLR 2025,
    section 5, "TWIN (hard)"; search as in Pi et al., "Search-based User Interest Modeling", CIKM
    2020, section 3.1.
    """

    sharing: ClassVar[Sharing] = "all"

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        context_width: int,
        top_k: int | None = 20,
        category: str = "category",
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
        self.category = part_named(self.parts, category, "TWINHard")

    def weights(self, inputs: SequenceInputs) -> Weights:
        """Return the softmax over what is found, and over all."""
        scores, is_valid = dot_scores(inputs, self.parts), inputs.is_valid
        wanted = inputs.ids[self.category.target].unsqueeze(1)
        is_same = inputs.ids[self.category.history] == wanted
        found = most_recent(is_same, is_valid, self.top_k)
        return Weights(
            retrieved=masked_softmax(scores, found), full=masked_softmax(scores, is_valid)
        )
