"""TWIN-V2: attention over clusters of behaviours, each as heavy as it has members.

    s_c = <mean of e over c, v> / sqrt(D)      weight of c  ~  size of c * exp(s_c)

Shapes: `B` examples, `L` places in a history, `K` clusters that are found.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from recemb.models.sequence.attention import dot_scores, masked_softmax
from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, Sharing, part_named
from recemb.models.sequence.search import top_k as best
from recemb.models.sequence.sequence_model import SequenceModel, Weights


class TWINV2(SequenceModel):
    """TWIN over clusters: a user's behaviours of one category.

    Weighting a cluster by its size and summing its mean is a softmax over behaviours in which each
    has the score of its cluster, so nothing is made per cluster but that score.

    Args:
        parts: what behaviours consist of.
        context_width: width of dense columns and features without a history.
        top_k: K.
        category: the column whose values are the clusters.
        hidden_units: of the head.
        auxiliary_units: of the auxiliary head; None for none.
        target_aware: whether the product of target and history is a feature.
        l2: on all parameters but biases and tables.
        init_std: of all these parameters; None draws them as their modules do.

    Raises:
        ValueError: if there is no such column.

    Source: Si et al., "TWIN V2: Scaling Ultra-Long User Behavior Sequence Modeling for Enhanced CTR
    Prediction at Kuaishou", CIKM 2024, equation 9. Its clusters come from hierarchical k-means over
    trained embeddings, made offline; a category stands for that here.
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
        self.category = part_named(self.parts, category, "TWINV2")

    def weights(self, inputs: SequenceInputs) -> Weights:
        """Return the softmax over the members of the best clusters, and of all."""
        is_valid = inputs.is_valid
        members = Clusters(inputs.ids[self.category.history], is_valid)
        means = members.means(dot_scores(inputs, self.parts))
        # Of each cluster its first member competes.
        heavy = means + members.sizes.log()
        found = best(heavy, members.is_first, self.top_k)
        return Weights(
            retrieved=masked_softmax(means, members.spread(found) & is_valid),
            full=masked_softmax(means, is_valid),
        )


class Clusters:
    """Which behaviours of a history have one id.

    Args:
        ids: (B, L).
        is_valid: (B, L) which places hold a behaviour.

    Attributes:
        sizes: (B, L) float32, members of each behaviour's cluster; 1 in padding.
        is_first: (B, L) whether it is the first of its cluster.
    """

    def __init__(self, ids: Tensor, is_valid: Tensor) -> None:
        self._shape = ids.shape
        example = torch.arange(len(ids), device=ids.device).unsqueeze(1)
        greatest = int(ids.max()) if ids.numel() else 0
        # Padding is in a cluster of its own.
        keys = example * (greatest + 2) + torch.where(is_valid, ids + 1, 0)
        distinct, self._cluster = torch.unique(keys.view(-1), return_inverse=True)
        self._num = len(distinct)
        places = torch.arange(ids.numel(), device=ids.device)
        first = places.new_full((self._num,), ids.numel())
        first = first.scatter_reduce(0, self._cluster, places, "amin")
        counts = torch.bincount(self._cluster, minlength=self._num).float()
        self._counts = counts
        self.sizes = torch.where(is_valid, counts[self._cluster].view(self._shape), 1.0)
        self.is_first = (first[self._cluster] == places).view(self._shape) & is_valid

    def means(self, scores: Tensor) -> Tensor:
        """Return the mean score (B, L) of each behaviour's cluster."""
        sums = scores.new_zeros(self._num).index_add(0, self._cluster, scores.reshape(-1))
        return (sums / self._counts)[self._cluster].view(self._shape)

    def spread(self, chosen: Tensor) -> Tensor:
        """Return which behaviours (B, L) have one of their cluster among `chosen` (B, L)."""
        marks = torch.zeros(self._num, dtype=torch.bool, device=chosen.device)
        marks[self._cluster[chosen.view(-1)]] = True
        return marks[self._cluster].view(self._shape)
