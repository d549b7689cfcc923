"""DIEN: interests that evolve, by recurrent networks over the most recent behaviours.

    h_t = GRU(e_t, h_t-1)      a = softmax over t of <h_t, W v>      s_t = AUGRU(h_t, s_t-1, a_t)

AUGRU is a GRU whose update gate is multiplied by a_t, so that what is not like the target passes
without a trace.

Shapes: `B` examples, `L` places in a history, `T` behaviours that are read, `D` width of all parts.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recemb.models.click_model import log_loss_sum
from recemb.models.sequence.attention import masked_softmax
from recemb.models.sequence.checks import at_least
from recemb.models.sequence.head import Head
from recemb.models.sequence.history_model import HistoryModel
from recemb.models.sequence.inputs import SequenceInputs
from recemb.models.sequence.part import Part, Sharing


class DIEN(HistoryModel):
    """Two recurrent layers: one extracts interests, one follows those that concern the target.

    Args:
        parts: what behaviours consist of.
        context_width: width of dense columns and features without a history.
        max_history: T, the most recent behaviours that are read; time is linear in it.
        auxiliary_weight: of the loss by which each interest tells the next behaviour from another
            one; 0 for none.
        hidden_units: of the head.

    Raises:
        ValueError: if `max_history` is below 1.

    Source: Zhou et al., "Deep Interest Evolution Network for Click-Through Rate Prediction", AAAI
    2019, sections 4.3 (equation 6 is the auxiliary loss) and 4.4. The other behaviour is what the
    batch's next example did at that place, where the paper draws an item; the head is DARE's.
    """

    sharing: ClassVar[Sharing] = "all"
    reads_time: ClassVar[bool] = False

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        context_width: int,
        max_history: int = 50,
        auxiliary_weight: float = 1.0,
        hidden_units: Sequence[int] = (200, 80),
    ) -> None:
        super().__init__(parts=parts, context_width=context_width)
        at_least("DIEN", 1, max_history=max_history)
        self.max_history = max_history
        self.auxiliary_weight = auxiliary_weight
        width = sum(p.representation.dim for p in self.parts)
        self.extraction = nn.GRU(width, width, batch_first=True)
        self.bilinear = nn.Linear(width, width, bias=False)
        self.evolution = AUGRU(width)
        self.head = Head(2 * width + context_width, hidden_units)

    def logits_of(self, inputs: SequenceInputs) -> Tensor:
        """Return the logits (B,)."""
        history, is_read = self._recent(inputs)
        interests, _ = self.extraction(history)
        return self._logits(inputs, interests, is_read)

    def loss_sum(self, inputs: SequenceInputs, labels: Tensor) -> Tensor:
        """Return the summed log loss, and that of the next behaviours."""
        history, is_read = self._recent(inputs)
        interests, _ = self.extraction(history)
        loss = log_loss_sum(self._logits(inputs, interests, is_read), labels)
        if self.auxiliary_weight and history.shape[1] > 1:
            loss = loss + self.auxiliary_weight * next_loss_sum(interests, history, is_read)
        return loss

    def _logits(self, inputs: SequenceInputs, interests: Tensor, is_read: Tensor) -> Tensor:
        target = inputs.target([p.representation for p in self.parts])
        scores = torch.bmm(interests, self.bilinear(target).unsqueeze(2)).squeeze(2)
        state = self.evolution(interests, masked_softmax(scores.float(), is_read))
        logits: Tensor = self.head(torch.cat([target, state, inputs.context], dim=1))
        return logits

    def _recent(self, inputs: SequenceInputs) -> tuple[Tensor, Tensor]:
        """Return the most recent behaviours (B, T, D), padded behind, and which there are."""
        history = inputs.history([p.representation for p in self.parts])
        size = min(self.max_history, history.shape[1])
        first = (inputs.lengths - size).clamp(min=0).unsqueeze(1)
        places = first + torch.arange(size, device=history.device)
        is_read = places < inputs.lengths.unsqueeze(1)
        index = places.clamp(max=history.shape[1] - 1).unsqueeze(2)
        return history.gather(1, index.expand(-1, -1, history.shape[2])), is_read


class AUGRU(nn.Module):
    """A recurrent network whose update gate attention scales.

        u = a sigmoid(W_u x + U_u s + b_u)      r = sigmoid(W_r x + U_r s + b_r)
        s <- (1 - u) s + u tanh(W_c x + r (U_c s) + b_c)

    Args:
        width: of input and state, D.

    Source: Zhou et al., AAAI 2019, equations 2 to 5 and 15 to 16.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.of_input = nn.Linear(width, 3 * width)
        self.of_state = nn.Linear(width, 3 * width, bias=False)

    def forward(self, inputs: Tensor, attention: Tensor) -> Tensor:
        """Return the last state (B, D); where attention is 0, the state stays.

        Args:
            inputs: (B, T, D).
            attention: (B, T), from 0 to 1.
        """
        state = inputs.new_zeros(len(inputs), self.width)
        gates = self.of_input(inputs)
        for step in range(inputs.shape[1]):
            update, reset, made = gates[:, step].chunk(3, dim=1)
            own_update, own_reset, own = self.of_state(state).chunk(3, dim=1)
            u = attention[:, step : step + 1] * torch.sigmoid(update + own_update)
            candidate = torch.tanh(made + torch.sigmoid(reset + own_reset) * own)
            state = (1 - u) * state + u * candidate
        return state


def next_loss_sum(interests: Tensor, history: Tensor, is_read: Tensor) -> Tensor:
    """Return how badly interests tell the next behaviour from the next example's, summed.

    Of each example it is the mean over its steps, and of the two log losses.

    Args:
        interests: (B, T, D).
        history: (B, T, D).
        is_read: (B, T) which behaviours there are.
    """
    others, is_other = history.roll(1, 0), is_read.roll(1, 0)
    found = interests.new_zeros(len(interests))
    for behaviours, is_there, sign in ((history, is_read, 1.0), (others, is_other, -1.0)):
        scores = (interests[:, :-1] * behaviours[:, 1:]).sum(2).float()
        is_counted = is_read[:, 1:] & is_there[:, 1:]
        losses = F.softplus(-sign * scores) * is_counted
        found = found + losses.sum(1) / is_counted.sum(1).clamp(min=1)
    return found.sum()
