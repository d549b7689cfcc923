"""Bags of ids as the pooling ops read them: checks, and the plain torch of pooling.

Shapes: `F` features, `B` examples, `N` ids, `D` width. Bags are feature-major: bag f * B + b holds
the ids of feature f in example b. `offsets` (F * B + 1,) cuts `values` (N,) into bags and covers
it: the first is 0, the last is N. Without offsets every bag holds one id, so N = F * B.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

POOLINGS = ("sum", "mean")


def check_bags(
    owner: str,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    num_features: int,
    pooling: str,
) -> None:
    """Raise where shapes and types do not make bags; reads no element, so it does not synchronise.

    Raises:
        ValueError: naming `owner`, the rule and the value.
    """
    if values.dim() != 1 or values.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{owner}: values must be (N,) int32 or int64, got {tuple(values.shape)} {values.dtype}"
        )
    if offsets is not None and (offsets.dim() != 1 or offsets.dtype not in _INTEGERS):
        raise ValueError(
            f"{owner}: offsets must be (F * B + 1,) int32 or int64, "
            f"got {tuple(offsets.shape)} {offsets.dtype}"
        )
    num_bags = values.shape[0] if offsets is None else offsets.shape[0] - 1
    if num_features < 1 or num_bags < 0 or num_bags % num_features:
        raise ValueError(
            f"{owner}: {num_bags} bags are no multiple of num_features={num_features}; "
            "every feature needs one bag per example, empty ones included"
        )
    if weights is not None and weights.shape != values.shape:
        raise ValueError(
            f"{owner}: weights must have one number per id, {tuple(values.shape)}, "
            f"got {tuple(weights.shape)}"
        )
    if pooling not in POOLINGS:
        raise ValueError(f"{owner}: pooling must be one of {POOLINGS}, got {pooling!r}")


_INTEGERS = (torch.int32, torch.int64)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the type that sums are kept in: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


def num_bags(values: Tensor, offsets: Tensor | None) -> int:
    """Return F * B."""
    return values.shape[0] if offsets is None else offsets.shape[0] - 1


def bag_of_lookup(values: Tensor, offsets: Tensor | None) -> Tensor:
    """Return the bag that each id lies in, (N,) int64."""
    if offsets is None:
        return torch.arange(values.shape[0], device=values.device)
    bags = torch.arange(offsets.shape[0] - 1, device=values.device)
    return torch.repeat_interleave(bags, offsets.diff(), output_size=values.shape[0])


def feature_of_lookup(bags: Tensor, total_bags: int, num_features: int) -> Tensor:
    """Return the feature of each id, (N,) int64, from its bag (N,)."""
    return bags // max(total_bags // num_features, 1)


def sum_bags(rows: Tensor, offsets: Tensor | None) -> Tensor:
    """Return the sums (F * B, D) of the rows (N, D) of each bag, added in the order of the ids."""
    if offsets is None:
        return rows
    if not rows.shape[0]:
        return rows.new_zeros(offsets.shape[0] - 1, rows.shape[1])
    at = torch.arange(rows.shape[0], device=rows.device)
    return F.embedding_bag(at, rows, offsets.long(), mode="sum", include_last_offset=True)


def lookup_scale(
    present: Tensor, bags: Tensor, total_bags: int, dtype: torch.dtype, *, mean: bool
) -> Tensor:
    """Return what pooling multiplies each row by, (N,): zero for absent ids.

    Args:
        present: (N,) bool, whether the id counts.
        bags: (N,) bag of each id.
        total_bags: F * B.
        dtype: of the result.
        mean: whether to divide by the number of present ids of the bag.
    """
    scale = present.to(dtype)
    if not mean:
        return scale
    counts = torch.zeros(total_bags, dtype=dtype, device=present.device)
    counts.index_add_(0, bags, scale)
    return scale / counts.clamp_min(1)[bags]


def to_examples(pooled: Tensor, num_features: int) -> Tensor:
    """Return feature-major bags (F * B, D) as (B, F, D), contiguous."""
    num_bags, width = pooled.shape
    by_feature = pooled.view(num_features, num_bags // num_features, width)
    return by_feature.transpose(0, 1).clone(memory_format=torch.contiguous_format)


def to_bags(grad: Tensor) -> Tensor:
    """Return (B, F, D) as feature-major bags (F * B, D)."""
    return grad.transpose(0, 1).reshape(grad.shape[0] * grad.shape[1], grad.shape[2])
