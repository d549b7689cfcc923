"""SDIM: behaviours that share a hash with the target, summed; no search at all.

    h = mean over groups of  normalised(sum of the e_i whose code in the group is the target's)

Shapes: `B` examples, `L` places in a history, `D` width of all parts, `G` groups of hashes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from recemb.models.sequence.checks import at_least
from recemb.models.sequence.eta import random_planes, signs
from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, Sharing
from recemb.models.sequence.sequence_model import SequenceModel, Weights


class SDIM(SequenceModel):
    """The mean of hash buckets, which approximates softmax attention over the whole history.

    Args:
        parts: what behaviours consist of.
        context_width: width of dense columns and features without a history.
        num_groups: G.
        bits_per_group: bits that must all be equal.
        hash_seed: of the planes, whose normals are never trained.
        hidden_units: of the head.
        target_aware: whether the product of target and history is a feature.
        l2: on all parameters but biases and tables.
        init_std: of all these parameters; None draws them as their modules do.

    Raises:
        ValueError: on a number below its range.

    Source: Cao et al., "Sampling Is All You Need on Modeling Long-Term User Behaviors for CTR
    Prediction", CIKM 2022, section 4, equation 9; 48 hashes in groups of 3.
    """

    sharing: ClassVar[Sharing] = "all"
    planes: Tensor

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        context_width: int,
        num_groups: int = 16,
        bits_per_group: int = 3,
        hash_seed: int = 0,
        hidden_units: Sequence[int] = (200, 80),
        target_aware: bool = True,
        l2: float = 0.0,
        init_std: float | None = None,
    ) -> None:
        at_least("SDIM", 1, num_groups=num_groups, bits_per_group=bits_per_group)
        super().__init__(
            parts=parts,
            context_width=context_width,
            top_k=None,
            hidden_units=hidden_units,
            auxiliary_units=None,
            target_aware=target_aware,
            l2=l2,
            init_std=init_std,
        )
        self.num_groups = num_groups
        width = sum(p.attention.dim for p in self.parts)
        planes = random_planes(width, num_groups * bits_per_group, hash_seed)
        self.register_buffer("planes", planes)

    def weights(self, inputs: SequenceInputs) -> Weights:
        """Return, for each group, 1 for the behaviours in the target's bucket, (B, G, L)."""
        with torch.no_grad():
            keys = [p.attention for p in self.parts]
            groups = (self.num_groups, -1)
            behaviours = torch.unflatten(signs(inputs.history(keys), self.planes), 2, groups)
            target = torch.unflatten(signs(inputs.target(keys), self.planes), 1, groups)
            is_equal = (behaviours == target.unsqueeze(1)).all(dim=3)
            found = (is_equal & inputs.is_valid.unsqueeze(2)).transpose(1, 2).float()
        return Weights(retrieved=found, full=found)

    def features(self, sums: Tensor, target: Tensor, context: Tensor) -> Tensor:
        """Return what the head reads, of the mean of the normalised sums (B, G, D)."""
        return super().features(F.normalize(sums, dim=2).mean(1), target, context)
