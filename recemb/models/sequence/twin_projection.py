"""TWIN with projections: linear maps instead of tables of their own.

    s_i = <K e_i, Q v> / sqrt(D)        features of  sum over S of softmax(s)_i V e_i  and  U v

with four maps for each part: Q, K, V and U.

Shapes: `B` examples, `L` places in a history, `D` width of a part.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from recemb.models.sequence.head import draw_all
from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, Sharing
from recemb.models.sequence.search import full_precision
from recemb.models.sequence.sequence_model import SequenceModel, Weights, searched


class TWINProjection(SequenceModel):
    """TWIN, whose one table is mapped for each use.

    The maps of behaviours are applied to what is made of them: <K e, Q v> = <e, K' Q v>, and the
    sum of V e is V of the sum, so that no map reads the history.

    Args:
        parts: what behaviours consist of.
        context_width: width of dense columns and features without a history.
        top_k: behaviours that are found.
        hidden_units: of the head.
        auxiliary_units: of the auxiliary head; None for none.
        target_aware: whether the product of target and history is a feature.
        l2: on all parameters but biases and tables.
        init_std: of all these parameters; None draws them as their modules do.

    Source: Feng et al., "Long-Sequence Recommendation Models Need Decoupled Embeddings", ICLR 2025,
    section 3.3, "TWIN (w/ proj.)"; square maps without bias for each part, as its released code has
    them.
    """

    sharing: ClassVar[Sharing] = "all"

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        context_width: int,
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
        widths = [p.attention.dim for p in self.parts]
        self.queries, self.keys, self.values, self.own = (
            nn.ModuleList([nn.Linear(width, width, bias=False) for width in widths])
            for _ in range(4)
        )
        if init_std is not None:
            for maps in (self.queries, self.keys, self.values, self.own):
                draw_all(maps, init_std)

    def weights(self, inputs: SequenceInputs) -> Weights:
        """Return the softmax over the K behaviours most like the target, and over all."""
        vectors = dict(inputs.vectors)
        for part, query, key in zip(self.parts, self.queries, self.keys, strict=True):
            assert isinstance(key, nn.Linear)
            target = vectors[part.attention.target]
            with full_precision(target):
                vectors[part.attention.target] = query(target) @ key.weight
        return searched(inputs._replace(vectors=vectors), self.parts, self.top_k)

    def features(self, sums: Tensor, target: Tensor, context: Tensor) -> Tensor:
        """Return what the heads read, of mapped sums and target."""
        return super().features(self._map(self.values, sums), self._map(self.own, target), context)

    def _map(self, maps: nn.ModuleList, vectors: Tensor) -> Tensor:
        blocks = torch.split(vectors, [p.representation.dim for p in self.parts], dim=1)
        return torch.cat([map_(block) for map_, block in zip(maps, blocks, strict=True)], dim=1)
