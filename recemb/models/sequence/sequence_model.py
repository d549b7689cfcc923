"""What models of behaviour sequences share: from attention weights to the logit and the loss.

    h = sum over behaviours of  w_i e_i        features = [v ; h ; v * h ; context]

Shapes: `B` examples, `L` places in a history, `K` retrieved, `D` width of all parts'
representations side by side, `C` width of the context.
"""

import abc
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.models.click_model import log_loss_sum
from recemb.models.sequence.attention import dot_scores, masked_softmax, weighted_sums
from recemb.models.sequence.checks import at_least
from recemb.models.sequence.head import Head, draw_all, squared_norm
from recemb.models.sequence.history_model import HistoryModel
from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part
from recemb.models.sequence.retrieval import retrieve, retrieved_sums
from recemb.models.sequence.search import top_k
from recemb.tables.tables import Tables


class Weights(NamedTuple):
    """What behaviours count: (B, L), or (B, H, L) for H sums.

    Attributes:
        retrieved: of the behaviours that the search found, 0 for the others.
        full: of all behaviours, for the auxiliary loss.
    """

    retrieved: Tensor
    full: Tensor


class SequenceModel(HistoryModel):
    """A target, and the behaviours before it, to a logit.

    Attributes:
        ranks_all: whether `Weights.full` says which behaviours of a history are worth most.

    Args:
        parts: what behaviours consist of, and where their vectors are.
        context_width: C, of dense columns and features without a history.
        top_k: K, behaviours that the search finds; None for all.
        hidden_units: of the head.
        auxiliary_units: of a second head, which reads the attention over the whole history and adds
            its log loss in training, so that behaviours that were not found get gradients, too;
            None for no such loss.
        target_aware: whether v * h is among the features.
        l2: added to an example's loss: this times the sum of squares of all parameters that are no
            bias; tables are not among them.
        init_std: every such parameter is drawn from N(0, init_std); None draws each as its module
            does.

    Raises:
        ValueError: on a number below its range.

    Source: Feng et al., "Long-Sequence Recommendation Models Need Decoupled Embeddings", ICLR 2025,
    section 4; auxiliary loss, l2 and init_std from its released code.
    """

    ranks_all: bool = True

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
        super().__init__(parts=parts, context_width=context_width)
        owner = type(self).__name__
        at_least(owner, 1, top_k=top_k)
        at_least(owner, 0, l2=l2, init_std=init_std)
        self.top_k = top_k
        self.target_aware = target_aware
        self.l2 = l2
        self.init_std = init_std
        dim = sum(p.representation.dim for p in self.parts)
        self.features_width = dim * (3 if target_aware else 2) + context_width
        self.head = Head(self.features_width, hidden_units)
        self.auxiliary_head = None
        if auxiliary_units is not None:
            self.auxiliary_head = Head(self.features_width, auxiliary_units)
        if init_std is not None:
            draw_all(self, init_std)

    @abc.abstractmethod
    def weights(self, inputs: SequenceInputs) -> Weights:
        """Return what behaviours count."""

    def product_search(self) -> int | None:
        """Return K if what is summed are the K behaviours of greatest `dot_scores`, by softmax.

        Then the search needs no other vectors than those scores do, and `weights` is not asked
        where the auxiliary loss does not need it. None for another search, or for none.
        """
        return None

    def representations(self, inputs: SequenceInputs) -> tuple[Tensor, Tensor]:
        """Return what is summed, (B, L, D), and the target's, (B, D)."""
        keys = [p.representation for p in self.parts]
        return inputs.history(keys), inputs.target(keys)

    def features(self, sums: Tensor, target: Tensor, context: Tensor) -> Tensor:
        """Return what the heads read.

        Args:
            sums: (B, D), h; or (B, H, D), for models that say what becomes of several.
            target: (B, D), v.
            context: (B, C).
        """
        blocks = [target, sums]
        if self.target_aware:
            blocks.append(target * sums)
        return torch.cat([*blocks, context], dim=1)

    def logits_of(self, inputs: SequenceInputs) -> Tensor:
        """Return the logits (B,)."""
        target = inputs.target([p.representation for p in self.parts])
        sums = self._retrieved_sums(inputs)
        logits: Tensor = self.head(self.features(sums, target, inputs.context))
        return logits

    def score(self, batch: Batch, tables: Tables) -> Tensor:
        """Return the logits (B,); in eval mode a search reads representations of what it finds."""
        k = self.product_search()
        if k is None or self.training or torch.is_grad_enabled():
            return super().score(batch, tables)
        found = retrieve(batch, tables, self.parts, k)
        if found is None:
            return super().score(batch, tables)
        logits: Tensor = self.head(self.features(*found))
        return logits

    def loss_sum(self, inputs: SequenceInputs, labels: Tensor) -> Tensor:
        """Return the summed log loss of both heads, and the penalty of the parameters."""
        target = inputs.target([p.representation for p in self.parts])
        heads = [self.head]
        if self.auxiliary_head is None:
            sums = [self._retrieved_sums(inputs)]
        else:
            # It needs every score and every vector; what is retrieved is made of the same.
            heads.append(self.auxiliary_head)
            sums = weighted_sums(self.weights(inputs), *self._histories(inputs))
        loss = labels.new_zeros(())
        for head, its in zip(heads, sums, strict=True):
            loss = loss + log_loss_sum(head(self.features(its, target, inputs.context)), labels)
        if self.l2:
            loss = loss + len(labels) * self.l2 * squared_norm(self)
        return loss

    def _retrieved_sums(self, inputs: SequenceInputs) -> Tensor:
        """Return what is summed by the weights of what was found, (B, D) or (B, H, D)."""
        k = self.product_search()
        if k is not None:
            return retrieved_sums(inputs, self.parts, k)
        (sums,) = weighted_sums([self.weights(inputs).retrieved], *self._histories(inputs))
        return sums

    def _histories(self, inputs: SequenceInputs) -> list[Tensor]:
        """Return what is summed, part by part, (B, L, D)."""
        return [inputs.vectors[p.representation.history] for p in self.parts]


def searched(inputs: SequenceInputs, parts: Sequence[Part], k: int | None) -> Weights:
    """Return the softmax over the K behaviours most like the target, and over all."""
    scores, is_valid = dot_scores(inputs, parts), inputs.is_valid
    return Weights(
        retrieved=masked_softmax(scores, top_k(scores, is_valid, k)),
        full=masked_softmax(scores, is_valid),
    )
