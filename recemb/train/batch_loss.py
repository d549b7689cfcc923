"""The loss of a batch, as the settings want it computed.

Shapes: `B` examples.
"""

from typing import Any

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.models.click_model import ClickModel
from recemb.tables.tables import Tables
from recemb.train.ranks import Ranks
from recemb.train.settings import TrainerSettings


class BatchLoss:
    """What a model's training minimises: compiled, in mixed precision, or neither.

    Compiled is what computes this rank's share of a batch of full size; shares of other sizes, such
    as those of an epoch's last batch, are not worth the time.

    Args:
        model: whose loss.
        settings: say which.
        device: that the model lives on.
    """

    def __init__(
        self, model: ClickModel, *, settings: TrainerSettings, device: torch.device
    ) -> None:
        self._model = model
        self._settings = settings
        self._device = device
        # The longest history of a batch is its own, and becomes a symbol when it first changes.
        self._compiled = torch.compile(_loss_sum) if settings.compile else None
        ranks = Ranks.current()
        # As recemb.data.order shares a batch out: shares may differ by one.
        start, stop = (
            settings.batch_size * rank // ranks.world_size for rank in (ranks.rank, ranks.rank + 1)
        )
        self._full_size = stop - start

    def __call__(self, tables: Tables, batch: Batch) -> Tensor:
        """Return the loss, a scalar, summed over a batch, with vectors from `tables`."""
        return self.of(self._model.inputs(batch, tables), batch.labels)

    def of(self, inputs: Any, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, summed over a batch, of what the model has looked up.

        Args:
            inputs: as for `ClickModel.logits_of`.
            labels: (B,) float32, 0 or 1.
        """
        is_full = len(labels) == self._full_size > 0
        function = self._compiled if self._compiled is not None and is_full else _loss_sum
        with torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=self._settings.precision == "bf16"
        ):
            return function(self._model, inputs, labels)


def _loss_sum(model: ClickModel, inputs: Any, labels: Tensor) -> Tensor:
    """Return what the model's training minimises, summed over a batch."""
    return model.loss_sum(inputs, labels)
