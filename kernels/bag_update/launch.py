"""Launches the kernels of the fused row update; for any device that Triton runs on.

Shapes: `R` rows of the table, `D` its width, `M` lookups, `G` rows of the gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recemb.kernels.bag_update import kernel

CHUNK = 64
"""Lookups of a chunk."""

FAN = 64
"""Chunks of a group."""

GROUPS_FROM = 1 << 18
"""From so many lookups on groups are summed too: no run of this length can be slow without them."""

_NUM_WARPS = 4


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How large the kernels' tiles are.

    Attributes:
        columns: the power of two from D on.
        sum_rows: rows of a tile that sums chunks. The order of sums depends on it and on
            the number of warps, so it is a function of D alone and must not be tuned.
        positions: sorted positions of a program for short runs; no bit of a sum depends on it.
        unroll: gradient rows that it loads at a time; likewise.
    """

    columns: int
    sum_rows: int
    positions: int
    unroll: int


def choose_tiles(width: int) -> Tiles:
    """Return the tiles for rows of `width` columns.

    A tile of 2048 values to sum and of 1024 to update is 16 and 8 values per thread of 4 warps;
    sums of 4096 spilled on sm_80. Nothing here was timed on a GPU.
    """
    columns = 1 << (width - 1).bit_length()
    return Tiles(
        columns=columns,
        sum_rows=min(32, max(1, 2048 // columns)),
        positions=min(128, max(1, 1024 // columns)),
        unroll=2 if columns <= 512 else 1,
    )


@dataclass(frozen=True, kw_only=False)
class Lookups:
    """What the lookups of a step contribute to the gradient of their rows.

    Attributes:
        grad: (G, D).
        sorted_rows: (M,), from `plan_update`.
        permutation: (M,) int64, from `plan_update`.
        sources: (M,) or None.
        scales: (M,) or None.
    """

    grad: Tensor
    sorted_rows: Tensor
    permutation: Tensor
    sources: Tensor | None
    scales: Tensor | None


def update_rows(
    weight: Tensor,
    state: Sequence[Tensor],
    lookups: Lookups,
    hyper: Tensor,
    *,
    optimizer: str,
    weight_decay_mode: str,
    rounding_seed: int | None,
    tiles: Tiles | None = None,
) -> None:
    """Update the touched rows of `weight` (R, D) and `state` in place; arguments as the op's."""
    is_rounded = rounding_seed is not None and weight.dtype in (torch.float16, torch.bfloat16)
    _launch(
        lookups,
        weight,
        [*state, weight, weight][:2],
        hyper,
        tiles=tiles or choose_tiles(weight.shape[1]),
        num_rows=weight.shape[0],
        ranks=None,
        seed=rounding_seed or 0,
        flags={"OPT": optimizer, "WD": weight_decay_mode, "ROUND": is_rounded},
    )


def segment_sum(
    lookups: Lookups, num_rows: int, *, tiles: Tiles | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return distinct rows (M,), their summed gradients (M, D) and how many there are."""
    rows = lookups.sorted_rows
    is_head = torch.ones_like(rows, dtype=torch.int64)
    is_head[1:] = rows[1:] != rows[:-1]
    is_head *= (rows >= 0) & (rows < num_rows)
    ranks = is_head.cumsum(0) - 1
    distinct = torch.full_like(rows, num_rows)
    # What lies outside the table is written to a place of its own, which is then cut off.
    places = torch.where(is_head.bool(), ranks, rows.numel())
    distinct = torch.nn.functional.pad(distinct, (0, 1)).scatter_(0, places, rows)[:-1]
    sums = lookups.grad.new_zeros(rows.numel(), lookups.grad.shape[1], dtype=torch.float32)
    _write_sums(lookups, sums, num_rows, ranks, tiles)
    return distinct, sums, is_head.sum()


def dense_gradient(lookups: Lookups, num_rows: int, *, tiles: Tiles | None = None) -> Tensor:
    """Return the gradient (R, D) of the whole table, float32."""
    dense = lookups.grad.new_zeros(num_rows, lookups.grad.shape[1], dtype=torch.float32)
    _write_sums(lookups, dense, num_rows, None, tiles)
    return dense


def round_stochastically(values: Tensor, elements: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
    """Return float32 `values` in `dtype` as `reference.round_stochastically` does, bit for bit."""
    out = torch.empty(values.shape, dtype=dtype, device=values.device)
    block = 1024
    if values.numel():
        kernel._round_kernel[(-(-values.numel() // block),)](
            values,
            elements,
            out,
            _as_int32(seed),
            values.numel(),
            HALF=dtype == torch.float16,
            BLOCK=block,
        )
    return out


def _write_sums(
    lookups: Lookups, out: Tensor, num_rows: int, ranks: Tensor | None, tiles: Tiles | None
) -> None:
    _launch(
        lookups,
        out,
        [out, out],
        out,
        tiles=tiles or choose_tiles(out.shape[1]),
        num_rows=num_rows,
        ranks=ranks,
        seed=0,
        flags={"OPT": "none", "WD": "none", "ROUND": False},
    )


def _launch(
    lookups: Lookups,
    weight: Tensor,
    state: Sequence[Tensor],
    hyper: Tensor,
    *,
    tiles: Tiles,
    num_rows: int,
    ranks: Tensor | None,
    seed: int,
    flags: dict[str, Any],
) -> None:
    num_lookups = lookups.permutation.numel()
    if num_lookups == 0:
        return
    width = weight.shape[1]
    scheme = {"D": width, "BLOCK_D": tiles.columns, "CH": CHUNK}
    has = {"HAS_SOURCES": lookups.sources is not None, "HAS_SCALES": lookups.scales is not None}
    inputs = (
        lookups.grad,
        lookups.sorted_rows,
        lookups.permutation,
        lookups.permutation if lookups.sources is None else lookups.sources,
        lookups.grad if lookups.scales is None else lookups.scales,
    )
    flags = {**flags, **has, "RANKED": ranks is not None}
    targets = (lookups.permutation if ranks is None else ranks, weight, *state, hyper)
    numbers = (_as_int32(seed), num_lookups, num_rows)
    kernel._short_runs_kernel[(-(-num_lookups // tiles.positions),)](
        *inputs,
        *targets,
        *numbers,
        **scheme,
        **flags,
        BLOCK_P=tiles.positions,
        UNROLL=tiles.unroll,
        LOG_CH=CHUNK.bit_length() - 1,
        num_warps=_NUM_WARPS,
    )
    num_chunks = num_lookups // CHUNK
    if num_chunks == 0:
        return
    scheme["ROWS"] = tiles.sum_rows
    has_super = num_lookups >= GROUPS_FROM
    partial = weight.new_empty(num_chunks, width, dtype=torch.float32)
    super_partial = weight.new_empty(num_chunks // FAN, width, dtype=torch.float32)
    kernel._partial_sums_kernel[(num_chunks,)](
        *inputs, partial, num_rows, **scheme, **has, num_warps=_NUM_WARPS
    )
    if has_super:
        kernel._super_sums_kernel[(num_chunks // FAN,)](
            lookups.sorted_rows,
            partial,
            super_partial,
            num_rows,
            **scheme,
            FAN=FAN,
            num_warps=_NUM_WARPS,
        )
    kernel._long_runs_kernel[(num_chunks,)](
        *inputs,
        *targets,
        partial,
        super_partial,
        *numbers,
        **scheme,
        **flags,
        FAN=FAN,
        HAS_SUPER=has_super,
        num_warps=_NUM_WARPS,
    )


def _as_int32(seed: int) -> int:
    """Return the low 32 bits of `seed` as a signed number."""
    return (seed & 0xFFFFFFFF) - ((seed & 0x80000000) << 1)
