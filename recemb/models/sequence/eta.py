"""ETA: search by locality-sensitive hashes instead of products.

    code(e) = sign(R' e)     S = the K of least Hamming distance     softmax of <e_i, v> over S

Shapes: `B` examples, `L` places in a history, `D` width of all parts, `M` bits of a code.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from recemb.models.sequence.attention import dot_scores, masked_softmax, products
from recemb.models.sequence.checks import at_least
from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, Sharing
from recemb.models.sequence.search import full_precision
from recemb.models.sequence.search import top_k as best
from recemb.models.sequence.sequence_model import SequenceModel, Weights


class ETA(SequenceModel):
    """TWIN, with a search that compares bits.

    Of equal distances, of which there are many, the older behaviours win.

    Args:
        parts: what behaviours consist of.
        context_width: width of dense columns and features without a history.
        top_k: behaviours that are found.
        num_bits: M.
        hash_seed: of R, whose values are normal and never trained.
        hidden_units: of the head.
        auxiliary_units: of the auxiliary head; None for none.
        target_aware: whether the product of target and history is a feature.
        l2: on all parameters but biases and tables.
        init_std: of all these parameters; None draws them as their modules do.

    Raises:
        ValueError: on a number below its range.

    Source: Chen et al., "Efficient Long Sequential User Data Modeling for Click-Through Rate
    Prediction", arXiv 2209.12212, section 4.2. Attention over what is found is TWIN's here, and not
    of several heads, so that the two differ in the search alone.
    """

    sharing: ClassVar[Sharing] = "all"
    planes: Tensor

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        context_width: int,
        top_k: int | None = 20,
        num_bits: int = 48,
        hash_seed: int = 0,
        hidden_units: Sequence[int] = (200, 80),
        auxiliary_units: Sequence[int] | None = (200,),
        target_aware: bool = True,
        l2: float = 0.0,
        init_std: float | None = None,
    ) -> None:
        at_least("ETA", 1, num_bits=num_bits)
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
        width = sum(p.attention.dim for p in self.parts)
        self.register_buffer("planes", random_planes(width, num_bits, hash_seed))

    def weights(self, inputs: SequenceInputs) -> Weights:
        """Return the softmax over what the hashes find, and over all."""
        scores, is_valid = dot_scores(inputs, self.parts), inputs.is_valid
        with torch.no_grad(), full_precision(scores):
            keys = [p.attention for p in self.parts]
            behaviours = signs(inputs.history(keys), self.planes)
            target = signs(inputs.target(keys), self.planes)
            # A product of signs is the number of bits less twice the distance.
            nearness = products(behaviours, target)
        found = best(nearness, is_valid, self.top_k)
        return Weights(
            retrieved=masked_softmax(scores, found), full=masked_softmax(scores, is_valid)
        )


def random_planes(width: int, num_bits: int, seed: int) -> Tensor:
    """Return the normals (D, M) of random planes."""
    return torch.randn(width, num_bits, generator=torch.Generator().manual_seed(seed))


def signs(vectors: Tensor, planes: Tensor) -> Tensor:
    """Return on which side of the planes (D, M) vectors (..., D) lie, (..., M): 1 or -1."""
    with full_precision(vectors):
        return torch.where(vectors.float() @ planes >= 0, 1.0, -1.0)
