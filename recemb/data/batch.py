"""One batch of examples, the unit between data and training.

Shapes: `B` examples, `F` categorical features, `L` places in a padded history.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.data.schema import Schema


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of examples.

    Attributes:
        dense: (B, num_dense) float32.
        features: ids of all categorical features, keys in the schema's order; one-hot
            features have length 1 in every example.
        labels: (B,) float32, 0 or 1.
        groups: (B,) int64, what GAUC groups by, or None.
    """

    dense: Tensor
    features: KeyedJaggedTensor
    labels: Tensor
    groups: Tensor | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; itself when it is there already."""
        if self.labels.device == device:
            return self
        return replace(
            self,
            dense=self.dense.to(device, non_blocking=True),
            features=self.features.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )


def features_of_padded(
    schema: Schema, ids: Mapping[str, Tensor], mask: Tensor
) -> KeyedJaggedTensor:
    """Return the features that models read, given histories that are padded to one length.

    Args:
        schema: whose features they are; it has no multi-hot column.
        ids: by feature, int64: (B,) of columns; (B, L) of histories, the oldest behaviour first,
            anything in padding. Histories of positions and the columns that they are of may be left
            out: they follow from `mask`.
        mask: (B, L) bool, which places hold a behaviour; padding may be in front or behind.

    Raises:
        ValueError: if a feature is missing or unknown, a shape is another, or a column is
            multi-hot.

    Example:
        >>> from recemb.data.schema import Categorical, History, Schema
        >>> schema = Schema(
        ...     dense=(),
        ...     categorical=(Categorical(name="item", num_embeddings=9),),
        ...     label="click",
        ...     histories=(History(name="seen", of="item"),),
        ... )
        >>> ids = {"item": torch.tensor([7, 8]), "seen": torch.tensor([[0, 3, 4], [0, 0, 5]])}
        >>> features = features_of_padded(schema, ids, ids["seen"] > 0)
        >>> [bag.tolist() for bag in features["seen"].to_dense()]
        [[3, 4], [5]]
    """
    if mask.dim() != 2 or mask.dtype != torch.bool:
        raise ValueError(f"mask must be (B, L) bool, got {tuple(mask.shape)} {mask.dtype}")
    if bags := [column.name for column in schema.categorical if column.is_multi_hot]:
        raise ValueError(f"columns {bags} are multi-hot; a mask describes one id for each place")
    lengths = mask.sum(1)
    # How many behaviours there are from each place on, itself included.
    positions = mask.flip(1).cumsum(1).flip(1)
    given = dict(ids)
    for history in schema.histories:
        if history.is_position:
            given.setdefault(history.name, positions)
            given.setdefault(history.of, torch.zeros_like(lengths))
    names = list(schema.feature_names)
    if set(given) != set(names):
        raise ValueError(f"ids must be those of {names}, got {list(ids)}")
    histories = {history.name for history in schema.histories}
    for name, its in given.items():
        expected = mask.shape if name in histories else lengths.shape
        if its.shape != expected:
            raise ValueError(
                f"feature '{name}' must be {tuple(expected)} as the mask is, got {tuple(its.shape)}"
            )
    ones = torch.ones_like(lengths)
    return KeyedJaggedTensor(
        keys=names,
        values=torch.cat([given[n][mask] if n in histories else given[n] for n in names]),
        lengths=torch.cat([lengths if n in histories else ones for n in names]),
        stride=len(lengths),
    )
