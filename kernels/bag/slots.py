"""The slots of a pooled lookup: which ids are read from which rows into which columns.

Shapes: `S` slots, `F` features, `B` bags per feature, `N` ids, `R` rows, `D` width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from recemb.kernels.hashing import MAX_ROWS

POLICIES = ("trust", "ignore", "clamp")
"""What becomes of an id outside [0, num_rows) in a slot that does not hash."""

HASHED, MEAN = 1, 2
"""Bits of a slot's flags."""

INT32_SENTINEL = 2**31 - 1
"""From this sentinel on, rows are int64."""


def pack_slots(
    features: Sequence[int],
    first_rows: Sequence[int],
    num_rows: Sequence[int],
    seeds: Sequence[int],
    is_hashed: Sequence[bool],
    is_mean: Sequence[bool],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the slots as (5, S) int64: features, first rows, row counts, seeds and flags.

    Slot s reads the ids of `features[s]`, looks them up in the rows `first_rows[s]` to
    `first_rows[s] + num_rows[s]` of the buffer and writes columns s * D to (s + 1) * D.

    Args:
        features: index of the feature, at least 0.
        first_rows: first row of the slot's table in the buffer.
        num_rows: rows of that table, from 1 to 2^31 - 1.
        seeds: of the hash, in [0, 2^32); unused where `is_hashed` is False.
        is_hashed: whether ids are hashed to rows, or are rows.
        is_mean: whether a bag's rows are averaged, or summed.
        device: where the kernels run.

    Raises:
        ValueError: if the sequences differ in length or a number is outside its range.
    """
    columns = (features, first_rows, num_rows, seeds, is_hashed, is_mean)
    if len({len(column) for column in columns}) != 1:
        raise ValueError(
            "pack_slots: every slot needs one value of each kind, got lengths "
            f"{[len(column) for column in columns]}"
        )
    limits = {
        "features": (features, 0, 2**31),
        "first_rows": (first_rows, 0, 2**62),
        "num_rows": (num_rows, 1, MAX_ROWS + 1),
        "seeds": (seeds, 0, 2**32),
    }
    for name, (numbers, low, high) in limits.items():
        for slot, number in enumerate(numbers):
            if not low <= number < high:
                raise ValueError(
                    f"pack_slots: {name} of slot {slot} must be in [{low}, {high}), got {number}"
                )
    flags = [
        HASHED * bool(hashed) + MEAN * bool(mean)
        for hashed, mean in zip(is_hashed, is_mean, strict=True)
    ]
    rows = [list(features), list(first_rows), list(num_rows), list(seeds), flags]
    return torch.tensor(rows, dtype=torch.int64).reshape(5, -1).to(device)


def count_lookups(feature_sizes: Sequence[int], features: Sequence[int]) -> int:
    """Return the lookups of a batch: the ids of each slot's feature, summed over the slots.

    Args:
        feature_sizes: ids of each feature in the batch; a KeyedJaggedTensor's `length_per_key()`.
        features: the feature of each slot, as given to `pack_slots`.
    """
    return sum(feature_sizes[feature] for feature in features)


def check_lookup(
    owner: str,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    slots: Tensor,
    batch_size: int,
    policy: str,
) -> None:
    """Raise ValueError if a lookup's arguments do not fit together; reads no device memory."""
    if policy not in POLICIES:
        raise ValueError(f"{owner}: policy must be one of {', '.join(POLICIES)}, got '{policy}'")
    if slots.dtype != torch.int64 or slots.ndim != 2 or slots.shape[0] != 5:
        raise ValueError(
            f"{owner}: slots must be (5, S) int64, got {_describe(slots)}; make them by pack_slots"
        )
    if values.dtype not in (torch.int64, torch.int32) or values.ndim != 1:
        raise ValueError(
            f"{owner}: values must be (N,) int64 or int32, got {_describe(values)}; flatten them, "
            "feature after feature"
        )
    if offsets is None:
        if values.shape[0] % max(batch_size, 1):
            raise ValueError(
                f"{owner}: without offsets each bag has one id, so the number of values must be a "
                f"multiple of batch_size {batch_size}, got {values.shape[0]}; pass offsets"
            )
    elif (
        offsets.dtype not in (torch.int64, torch.int32)
        or offsets.ndim != 1
        or (offsets.shape[0] - 1) % max(batch_size, 1)
    ):
        raise ValueError(
            f"{owner}: offsets must be (F * batch_size + 1,) int64 or int32 with batch_size "
            f"{batch_size}, got {_describe(offsets)}"
        )
    if weights is not None and (
        weights.shape != values.shape or not weights.dtype.is_floating_point
    ):
        raise ValueError(
            f"{owner}: weights must be one float per id, shape {tuple(values.shape)}, "
            f"got {_describe(weights)}"
        )
    for name, tensor in (("offsets", offsets), ("weights", weights), ("slots", slots)):
        if tensor is not None and tensor.device != values.device:
            raise ValueError(
                f"{owner}: {name} are on {tensor.device} and values on {values.device}; "
                "move them to one device"
            )


def check_table(owner: str, weight: Tensor, values: Tensor) -> None:
    """Raise ValueError if `weight` is no buffer of rows that the kernels can read."""
    allowed = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    if weight.ndim != 2 or weight.dtype not in allowed or not weight.is_contiguous():
        raise ValueError(
            f"{owner}: weight must be (R, D), contiguous, of float32, float16 or bfloat16 (on a "
            f"CPU also float64), got {_describe(weight)}"
        )
    if weight.device != values.device:
        raise ValueError(
            f"{owner}: weight is on {weight.device} and values on {values.device}; "
            "move them to one device"
        )


def check_count(
    owner: str, offsets: Tensor | None, slots: Tensor, batch_size: int, num_lookups: int | None
) -> int:
    """Return the number of lookups to make room for."""
    num_slots = slots.shape[1]
    if batch_size * num_slots >= 2**31:
        raise ValueError(
            f"{owner}: batch_size * slots must be under 2^31, got {batch_size} * {num_slots}; "
            "use a smaller batch"
        )
    if num_lookups is not None:
        return num_lookups
    if offsets is not None:
        raise ValueError(
            f"{owner}: num_lookups must be given beside offsets, since reading it from the device "
            "would stall; pass count_lookups(kjt.length_per_key(), features)"
        )
    return num_slots * batch_size


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
