"""Scores of a split, and the metrics of those scores."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.models.click_model import ClickModel
from recemb.tables.tables import Tables
from recemb.train.metrics import ranking_metrics


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The logits of a split beside its labels.

    Attributes:
        logits: (N,) float32.
        labels: (N,) float32.
        groups: (N,) int64, or None.
    """

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    groups: npt.NDArray[np.int64] | None

    def metrics(self, split: str) -> dict[str, float]:
        """Return the metrics, their names prefixed by `split/`."""
        values = ranking_metrics(self.logits, self.labels, self.groups)
        return {f"{split}/{name}": value for name, value in values.items()}


def score(
    batches: Iterable[Batch], *, tables: Tables, model: ClickModel, device: torch.device
) -> Scored:
    """Return the logits of all batches, computed in fp32 and in evaluation mode.

    The modes of `tables` and `model` are restored.

    Raises:
        ValueError: if there is no example.
    """
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    groups: list[Tensor] = []
    modes = tables.training, model.training
    tables.eval()
    model.eval()
    with torch.no_grad():
        for batch in batches:
            here = batch.to(device)
            logits.append(model.score(here, tables).float().cpu())
            labels.append(batch.labels)
            if batch.groups is not None:
                groups.append(batch.groups)
    tables.train(modes[0])
    model.train(modes[1])
    if not logits:
        raise ValueError("there is no example to score; the split is empty")
    return Scored(
        logits=torch.cat(logits).numpy(),
        labels=torch.cat(labels).numpy(),
        groups=torch.cat(groups).numpy() if groups else None,
    )
