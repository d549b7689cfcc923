"""The ids of chosen features of a batch, flat and feature by feature.

Shapes: `B` examples, `F` features, `N` ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True, kw_only=True)
class Bags:
    """The bags of F features in B examples.

    Attributes:
        values: (N,) ids, int64 or int32; all of the first feature's, then the second's, ...
        sizes: number of ids of each feature.
        lengths: (F*B,) number of ids of each bag, feature by feature; None if every bag holds
            exactly one id.
        offsets: (F*B+1,) where each bag starts in `values`, of the dtype of `values`; None when
            `lengths` is.
        weights: (N,) float32 weight of each id, or None.
        batch_size: B.
    """

    values: Tensor
    sizes: list[int]
    lengths: Tensor | None
    offsets: Tensor | None
    weights: Tensor | None
    batch_size: int

    def bag_lengths(self) -> Tensor:
        """Return the number of ids of each bag (F*B,), int32 or int64."""
        if self.lengths is not None:
            return self.lengths
        return torch.ones(self.values.numel(), dtype=torch.int32, device=self.values.device)


def is_one_hot(features: KeyedJaggedTensor) -> bool:
    """Return whether every bag holds exactly one id and no id has a weight.

    Raises:
        TypeError: if these are no features, or ids are no integers: it is asked of every batch.
    """
    if not isinstance(features, KeyedJaggedTensor):
        raise TypeError(
            f"tables read a KeyedJaggedTensor, got {type(features).__name__}; make one with "
            "KeyedJaggedTensor.from_lengths_sync(names, ids, lengths)"
        )
    if features.values().is_floating_point():
        raise TypeError(f"ids must be integers, got {features.values().dtype}")
    lengths: Tensor = features.lengths()
    return (
        features.weights_or_none() is None
        and features.values().numel() == lengths.numel()
        and (lengths.numel() == 0 or int(lengths.min()) == 1)
    )


def select_bags(features: KeyedJaggedTensor, names: Sequence[str], *, one_hot: bool) -> Bags:
    """Return the bags of the features `names`, in that order; a name may come twice.

    Args:
        features: any features in any order.
        names: F of them.
        one_hot: `is_one_hot(features)`, which the caller asks once per batch.

    Raises:
        ValueError: if a feature is missing, or the batch size differs between features.
    """
    keys: list[str] = features.keys()
    if features.variable_stride_per_key():
        raise ValueError("tables: features have different batch sizes; give one to all of them")
    batch_size: int = features.stride()
    chosen = None if tuple(keys) == tuple(names) else _positions(keys, names)
    if one_hot:
        values = _pick_equal(features.values(), len(keys), chosen)
        return Bags(
            values=values,
            sizes=[batch_size] * len(names),
            lengths=None,
            offsets=None,
            weights=None,
            batch_size=batch_size,
        )
    sizes: list[int] = features.length_per_key()
    lengths = _pick_equal(features.lengths(), len(keys), chosen)
    values, weights = features.values(), features.weights_or_none()
    if chosen is not None:
        values = _pick(values, sizes, chosen)
        weights = None if weights is None else _pick(weights, sizes, chosen)
        sizes = [sizes[k] for k in chosen]
    if weights is None and values.numel() == lengths.numel() and bool((lengths == 1).all()):
        return Bags(
            values=values,
            sizes=sizes,
            lengths=None,
            offsets=None,
            weights=None,
            batch_size=batch_size,
        )
    offsets = torch.zeros(lengths.numel() + 1, dtype=values.dtype, device=values.device)
    torch.cumsum(lengths, 0, dtype=values.dtype, out=offsets[1:])
    return Bags(
        values=values,
        sizes=sizes,
        lengths=lengths,
        offsets=offsets,
        weights=weights,
        batch_size=batch_size,
    )


def _positions(keys: Sequence[str], names: Sequence[str]) -> list[int]:
    index = {key: k for k, key in enumerate(keys)}
    if missing := [n for n in dict.fromkeys(names) if n not in index]:
        raise ValueError(
            f"tables: features {missing} are looked up but not in the batch, which has "
            f"{list(keys)}; add them to the batch or drop them from the tables' feature_names"
        )
    return [index[n] for n in names]


def _pick_equal(flat: Tensor, num_keys: int, chosen: list[int] | None) -> Tensor:
    """Return the chosen blocks of `flat`, which holds `num_keys` blocks of equal size."""
    if chosen is None:
        return flat
    blocks = flat.view(num_keys, flat.numel() // num_keys)
    first = chosen[0]
    if chosen == list(range(first, first + len(chosen))):
        return blocks[first : first + len(chosen)].reshape(-1)
    return blocks[torch.tensor(chosen, device=flat.device)].view(-1)


def _pick(flat: Tensor, sizes: list[int], chosen: list[int]) -> Tensor:
    blocks = torch.split(flat, sizes)
    return torch.cat([blocks[k] for k in chosen])
