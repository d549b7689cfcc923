"""The update of touched rows in plain torch: sort, sum duplicates, apply the formula, round.

Works in float64 if weights, gradient, state and hyper are float64, else in float32.

Shapes: `R` rows of the table, `D` its width, `M` lookups, `G` rows of the gradient, `U` distinct
rows, `H` = 8 hyper-parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recemb.kernels.hashing.reference import fmix32

ROWWISE_STATE: dict[str, tuple[bool, ...]] = {
    "sgd": (),
    "adagrad": (False,),
    "rowwise_adagrad": (True,),
    "adam": (False, False),
    "rowwise_adam": (False, True),
}
"""By optimizer: for each of its state tensors, whether it holds one value per row."""

WEIGHT_DECAY_MODES = ("none", "l2", "decoupled")

MAX_NARROW_ROWS = 2**31 - 2
"""Most rows whose numbers, the sentinel included, are sorted as int32."""

_MASK32 = 0xFFFFFFFF
_CHUNK_VALUES = 1 << 20
_SMALLEST_NORMAL_HALF = 2.0**-14


def plan_update(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the rows (M,) in ascending order, and the lookup (M,) int64 that each came from.

    Rows outside [0, num_rows) come out as -1 or num_rows.
    """
    if rows.dtype == torch.int64:
        rows = rows.clamp(-1, num_rows)
        rows = rows.int() if num_rows <= MAX_NARROW_ROWS else rows
    ordered, permutation = torch.sort(rows, stable=True)
    return ordered, permutation


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The lookups grouped by row, those outside the table left out.

    Attributes:
        rows: (U,) int64, the distinct rows, ascending.
        starts: (U+1,) int64, where each row's lookups begin in `sources`.
        sources: the gradient row of each lookup, int64, in sorted order.
        scales: what each is multiplied by, or None for 1.
    """

    rows: Tensor
    starts: Tensor
    sources: Tensor
    scales: Tensor | None

    def gradient(self, grad: Tensor, first: int, last: int) -> Tensor:
        """Return the summed gradients (last-first, D) of `rows[first:last]`; `grad` is (G, D)."""
        starts = self.starts[first : last + 1]
        begin, end = int(starts[0]), int(starts[-1])
        scales = None if self.scales is None else self.scales[begin:end].to(grad.dtype)
        return F.embedding_bag(
            self.sources[begin:end],
            grad,
            starts - begin,
            mode="sum",
            per_sample_weights=scales,
            include_last_offset=True,
        )


def find_runs(
    sorted_rows: Tensor,
    permutation: Tensor,
    sources: Tensor | None,
    scales: Tensor | None,
    num_rows: int,
) -> Runs:
    """Return the runs of equal rows; sorted_rows and permutation (M,) are those of `plan_update`.

    Args:
        sorted_rows: (M,) int32 or int64.
        permutation: (M,) int64.
        sources: (M,) the gradient row of each lookup, or None for its own position.
        scales: (M,) what each lookup's gradient is multiplied by, or None for 1.
        num_rows: R.
    """
    is_row = (sorted_rows >= 0) & (sorted_rows < num_rows)
    permutation = permutation[is_row]
    rows, counts = torch.unique_consecutive(sorted_rows[is_row], return_counts=True)
    return Runs(
        rows=rows.long(),
        starts=F.pad(counts.cumsum(0), (1, 0)),
        sources=permutation if sources is None else sources[permutation].long(),
        scales=None if scales is None else scales[permutation],
    )


def update_rows(
    weight: Tensor,
    state: Sequence[Tensor],
    grad: Tensor,
    runs: Runs,
    hyper: Tensor,
    *,
    optimizer: str,
    weight_decay_mode: str,
    rounding_seed: int | None,
) -> None:
    """Update the rows of `runs` in `weight` (R, D) and `state`, in place; arguments as the op's."""
    grad = _widened(grad)
    numbers = [float(x) for x in hyper.tolist()]
    width = weight.shape[1]
    chunk = max(1, _CHUNK_VALUES // width)
    for first in range(0, runs.rows.numel(), chunk):
        last = min(first + chunk, runs.rows.numel())
        rows = runs.rows[first:last]
        block, parts = apply_formula(
            _widened(weight[rows]),
            runs.gradient(grad, first, last),
            [part[rows] for part in state],
            numbers,
            optimizer=optimizer,
            weight_decay_mode=weight_decay_mode,
        )
        if rounding_seed is not None and weight.dtype in (torch.float16, torch.bfloat16):
            elements = rows.unsqueeze(1) * width + torch.arange(width, device=rows.device)
            block = round_stochastically(block, elements, rounding_seed, weight.dtype)
        weight.index_copy_(0, rows, block.to(weight.dtype))
        for target, part in zip(state, parts, strict=True):
            target.index_copy_(0, rows, part)


def apply_formula(
    rows: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    hyper: Sequence[float],
    *,
    optimizer: str,
    weight_decay_mode: str,
) -> tuple[Tensor, list[Tensor]]:
    """Return the new rows (U, D) and state, by the formulas in the package's docstring.

    Args:
        rows: (U, D).
        grad: (U, D), duplicates summed.
        state: each (U, D) or (U,).
        hyper: lr, eps, beta1, beta2, weight decay, bias correction 1 and 2, and one unused.
        optimizer: a key of ROWWISE_STATE.
        weight_decay_mode: one of WEIGHT_DECAY_MODES.
    """
    lr, eps, beta1, beta2, weight_decay, correction1, correction2 = hyper[:7]
    if weight_decay_mode == "l2":
        grad = grad + weight_decay * rows
    elif weight_decay_mode == "decoupled":
        rows = rows * (1 - lr * weight_decay)
    if optimizer == "sgd":
        return rows - lr * grad, []
    is_rowwise = ROWWISE_STATE[optimizer][-1]
    square = grad.square().mean(1, keepdim=True) if is_rowwise else grad.square()
    second = state[-1].unsqueeze(1) if is_rowwise else state[-1]
    if optimizer in ("adagrad", "rowwise_adagrad"):
        second = second + square
        step, denominator = lr * grad, second.sqrt() + eps
        moments = []
    else:
        first = beta1 * state[0] + (1 - beta1) * grad
        second = beta2 * second + (1 - beta2) * square
        step = lr / correction1 * first
        denominator = second.sqrt() / correction2**0.5 + eps
        moments = [first]
    return rows - step / denominator, [*moments, second.squeeze(1) if is_rowwise else second]


def segment_sum(
    grad: Tensor, runs: Runs, num_lookups: int, num_rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return distinct rows (M,) of `dtype`, their sums (M, D), and how many there are, a scalar."""
    count = runs.rows.numel()
    distinct = torch.full((num_lookups,), num_rows, dtype=dtype, device=grad.device)
    distinct[:count] = runs.rows.to(dtype)
    wide = _widened(grad)
    sums = wide.new_zeros(num_lookups, grad.shape[1])
    if count:
        sums[:count] = runs.gradient(wide, 0, count)
    return distinct, sums, torch.tensor(count, device=grad.device)


def dense_gradient(grad: Tensor, runs: Runs, num_rows: int) -> Tensor:
    """Return the gradient (R, D) of the whole table, zero in rows without lookups."""
    wide = _widened(grad)
    dense = wide.new_zeros(num_rows, grad.shape[1])
    if runs.rows.numel():
        dense.index_copy_(0, runs.rows, runs.gradient(wide, 0, runs.rows.numel()))
    return dense


def random_bits(seed: int | Tensor, elements: Tensor) -> Tensor:
    """Return 32 random bits for each element, int64 in [0, 2^32).

    The bits depend on nothing but seed and element: fmix32(fmix32(low32(e) ^ seed) ^ high32(e)).

    Args:
        seed: of which 32 bits count.
        elements: int64, such as row * D + column.
    """
    low = fmix32((elements & _MASK32) ^ (seed & _MASK32))
    return fmix32(low ^ ((elements >> 32) & _MASK32))


def round_stochastically(
    values: Tensor, elements: Tensor, seed: int | Tensor, dtype: torch.dtype
) -> Tensor:
    """Return `values` in `dtype`, rounded up or down with the probability that makes no bias.

    A value of the narrow type stays itself; others move to one of their two neighbours, which
    beyond the largest number is infinity. Infinities and NaN pass through.

    Args:
        values: float32, of any shape.
        elements: int64 of the same shape, what the random bits depend on.
        seed: of which 32 bits count; another one at every step.
        dtype: float16 or bfloat16; wider types are returned as they are, converted.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return values.to(dtype)
    values = values.float()
    bits = random_bits(seed, elements)
    num_bits = 16 if dtype == torch.bfloat16 else 13
    rounded = _round_pattern(values, bits, num_bits)
    if dtype == torch.float16:
        is_small = values.abs() < _SMALLEST_NORMAL_HALF
        rounded = torch.where(is_small, _round_small_half(values, bits), rounded)
    return torch.where(values.isfinite(), rounded, values).to(dtype)


def _round_pattern(values: Tensor, bits: Tensor, num_bits: int) -> Tensor:
    """Return float32 whose last `num_bits` are zero: random ones are added, then cut off."""
    mask = (1 << num_bits) - 1
    pattern = values.contiguous().view(torch.int32) + (bits & mask).int()
    return (pattern & ~mask).view(torch.float32)


def _round_small_half(values: Tensor, bits: Tensor) -> Tensor:
    """Return float32 multiples of 2^-24, where float16 numbers are evenly spaced.

    floor(y + u) = floor(y) + [u >= 1 - (y - floor(y))], and the right side rounds nowhere.
    """
    y = values * 2.0**24
    below = y.floor()
    uniform = (bits >> 8).float() * 2.0**-24
    return (below + (uniform >= 1 - (y - below)).float()) * 2.0**-24


def _widened(tensor: Tensor) -> Tensor:
    """Return float64 as it is and every other type as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
