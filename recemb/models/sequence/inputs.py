"""What sequence models compute with: vectors of a batch, histories padded to one length.

Shapes: `B` examples, `L` places in a history, `D` width of a part, `C` width of the context.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.models.sequence.part import Part, RoleKeys
from recemb.tables.tables import Tables


class SequenceInputs(NamedTuple):
    """A batch, looked up.

    Attributes:
        context: (B, C) dense columns, and the vectors of the features without a history.
        lengths: (B,) behaviours of each history.
        vectors: by key: (B, L, D) of histories, the oldest behaviour first and zeros behind the
            last; (B, D) of targets.
        ids: by feature: (B, L) of histories, padded with zeros; (B,) of targets.
    """

    context: Tensor
    lengths: Tensor
    vectors: Mapping[str, Tensor]
    ids: Mapping[str, Tensor]

    @property
    def is_valid(self) -> Tensor:
        """Return which places (B, L) hold a behaviour."""
        size = next(v.shape[1] for v in self.vectors.values() if v.dim() == 3)
        return torch.arange(size, device=self.lengths.device) < self.lengths.unsqueeze(1)

    def history(self, keys: Sequence[RoleKeys]) -> Tensor:
        """Return the behaviours' vectors of some parts side by side, (B, L, sum of D)."""
        return _joined([self.vectors[k.history] for k in keys])

    def target(self, keys: Sequence[RoleKeys]) -> Tensor:
        """Return the target's vectors of some parts side by side, (B, sum of D)."""
        return _joined([self.vectors[k.target] for k in keys])


def look_up(batch: Batch, tables: Tables, parts: Sequence[Part]) -> SequenceInputs:
    """Return the vectors of a batch.

    Args:
        batch: the batch.
        tables: made for the parts.
        parts: what behaviours consist of.
    """
    found = tables.sequences(batch.features)
    lengths = batch.features[parts[0].history].lengths()
    padding = Padding(lengths)
    histories = {keys.history for part in parts for keys in (part.attention, part.representation)}
    return SequenceInputs(
        context=context_of(batch, tables),
        lengths=lengths,
        vectors={
            key: padding.pad(jagged.values()) if key in histories else jagged.values()
            for key, jagged in found.items()
        },
        ids=ids_of(batch, parts, padding),
    )


def context_of(batch: Batch, tables: Tables) -> Tensor:
    """Return dense columns and the vectors of features without a history, (B, C)."""
    if not tables.keys:
        return batch.dense
    return torch.cat([batch.dense, tables(batch.features).values()], dim=1)


def ids_of(batch: Batch, parts: Sequence[Part], padding: "Padding") -> dict[str, Tensor]:
    """Return ids by feature: (B, L) of histories, padded with zeros; (B,) of targets."""
    return {
        **{p.history: padding.pad(batch.features[p.history].values()) for p in parts},
        **{p.target: batch.features[p.target].values() for p in parts},
    }


class Padding:
    """From histories one after the other to a block of them, padded behind.

    Args:
        lengths: (B,) behaviours of each history.

    Attributes:
        size: L, at least 1.
    """

    def __init__(self, lengths: Tensor) -> None:
        self._num = lengths.numel()
        longest = int(lengths.max()) if self._num else 0
        self.size = max(1, longest)
        self._is_even = self._num > 0 and longest > 0 and int(lengths.min()) == longest
        self._lengths = lengths
        self._offsets = torch.zeros(self._num + 1, dtype=torch.int64, device=lengths.device)
        torch.cumsum(lengths, 0, out=self._offsets[1:])

    def pad(self, values: Tensor) -> Tensor:
        """Return the block (B, L, D) of vectors (N, D), or (B, L) of ids (N,); zeros behind."""
        if self._is_even:
            return values.view(self._num, self.size, *values.shape[1:])
        if values.dim() == 2:
            # An eighth of the time that index_copy and its backward pass take on a CPU.
            block: Tensor = torch.ops.fbgemm.jagged_to_padded_dense(
                values, [self._offsets], [self.size], 0.0
            )
            return block
        is_valid = torch.arange(self.size, device=values.device) < self._lengths.unsqueeze(1)
        return values.new_zeros(is_valid.shape).masked_scatter_(is_valid, values)


def _joined(blocks: Sequence[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks), dim=-1)
