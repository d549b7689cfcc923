"""Scores of a split, and the metrics of those scores."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.data.order import Shares
from recemb.data.prepared import Prepared
from recemb.models.click_model import ClickModel
from recemb.tables.tables import Tables
from recemb.train.metrics import ranking_metrics
from recemb.train.ranks import Ranks


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


def score_split(
    prepared: Prepared,
    split: str,
    *,
    batch_size: int,
    tables: Tables,
    model: ClickModel,
    device: torch.device,
) -> Scored:
    """Return the logits of a split, in its order, on every rank; each computes its share of them.

    Raises:
        ValueError: if there is no such split, or no example in it.
    """
    ranks = Ranks.current()
    rank, world_size = ranks.rank, ranks.world_size
    batches = prepared.batches(split, batch_size=batch_size, rank=rank, world_size=world_size)
    mine = score(batches, tables=tables, model=model, device=device)
    if world_size == 1:
        return mine
    num_rows = prepared.num_rows(split)
    logits, labels = np.empty(num_rows, np.float32), np.empty(num_rows, np.float32)
    groups = None if mine.groups is None else np.empty(num_rows, np.int64)
    for owner, its in enumerate(ranks.everyone(mine)):
        share = Shares(
            num_rows, batch_size=batch_size, rank=owner, world_size=world_size, drop_last=False
        )
        places = np.concatenate([np.arange(*share.bounds(s)) for s in range(share.num_steps)])
        logits[places], labels[places] = its.logits, its.labels
        if groups is not None and its.groups is not None:
            groups[places] = its.groups
    return Scored(logits=logits, labels=labels, groups=groups)


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
