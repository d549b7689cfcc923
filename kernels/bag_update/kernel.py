"""The kernels of the fused row update; launch.py launches them, README.md explains them.

Sorted positions are cut into aligned chunks of CH. A run of equal rows that holds a full chunk is
long, every other run is short, so shorter than 2 CH.

- `_partial_sums_kernel` sums each full chunk that holds one row only;
- `_super_sums_kernel` sums aligned groups of FAN such chunks, if launched;
- `_short_runs_kernel` sums each short run and updates its row;
- `_long_runs_kernel` sums the loose ends and partial sums of each long run and updates its row.

One program updates a row, and no other reads or writes it, so nothing is atomic. CH, FAN, ROWS and
num_warps fix the order of the sums and with it the last bits; the launcher never tunes them.

Arguments that repeat: grad (G, D); sorted_rows, permutation (M,) of the plan; sources, scales (M,)
or anything where HAS_SOURCES, HAS_SCALES are false; weight (R, D); state0, state1 the optimizer's
tensors or anything; hyper (8,); seed the int32 bits of the rounding seed; num_lookups M; num_rows
R.
OPT "none" writes the summed gradient in place of a step: to row `ranks[position]` of `weight` if
RANKED, else to the row itself.

Shapes: `P` positions or rows of a tile, `BLOCK_D` columns, the power of two from D on.
"""

import triton
import triton.language as tl

from recemb.kernels.bag_update.step import round_stochastically, step_rows

_PROBES = tl.constexpr(512)


@triton.jit
def _round_kernel(values, elements, out, seed, num_values, HALF: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_values
    x = tl.load(values + at, mask=inside, other=0.0)
    element = tl.load(elements + at, mask=inside, other=0)
    tl.store(out + at, round_stochastically(x, element, seed, HALF), mask=inside)


@triton.jit
def _load_gradient(
    grad,
    permutation,
    sources,
    scales,
    position,
    inside,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_SOURCES: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):
    """Return the scaled gradients (P, BLOCK_D) float32 of sorted positions (P, 1), 0 if outside."""
    d = tl.arange(0, BLOCK_D)[None, :]
    lookup = tl.load(permutation + position, mask=inside, other=0)
    source = lookup
    if HAS_SOURCES:
        source = tl.load(sources + lookup, mask=inside, other=0).to(tl.int64)
    g = tl.load(grad + source * D + d, mask=inside & (d < D), other=0.0).to(tl.float32)
    if HAS_SCALES:
        g *= tl.load(scales + lookup, mask=inside, other=0.0).to(tl.float32)
    return g


@triton.jit
def _finish(
    row,
    active,
    g,
    weight,
    state0,
    state1,
    hyper,
    seed,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OPT: tl.constexpr,
    WD: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Step rows (P, 1) int64, where active, by `g` (P, BLOCK_D), or write `g` itself."""
    if OPT == "none":
        d = tl.arange(0, BLOCK_D)[None, :]
        tl.store(weight + row * D + d, g, mask=active & (d < D))
    else:
        step_rows(row, active, g, weight, state0, state1, hyper, seed, D, BLOCK_D, OPT, WD, ROUND)


@triton.jit(do_not_specialize=["num_rows"])
def _partial_sums_kernel(
    grad,
    sorted_rows,
    permutation,
    sources,
    scales,
    partial,
    num_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CH: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_SOURCES: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):
    """Write to partial[c] (M // CH, D) float32 the sum of chunk c if it holds one row only."""
    chunk = tl.program_id(0).to(tl.int64)
    row = tl.load(sorted_rows + chunk * CH)
    last = tl.load(sorted_rows + chunk * CH + (CH - 1))
    if (row == last) & (row >= 0) & (row < num_rows):
        d = tl.arange(0, BLOCK_D)[None, :]
        r = tl.arange(0, ROWS)[:, None]
        total = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for k in range(0, CH, ROWS):
            position = chunk * CH + k + r
            total += _load_gradient(
                grad,
                permutation,
                sources,
                scales,
                position,
                position >= 0,
                D,
                BLOCK_D,
                HAS_SOURCES,
                HAS_SCALES,
            )
        tl.store(partial + chunk * D + d, tl.sum(total, axis=0, keep_dims=True), mask=d < D)


@triton.jit
def _sum_partials(
    partial, begin, end, total, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr
):
    """Return `total` (ROWS, BLOCK_D) plus rows begin to end of `partial`, in a fixed order."""
    d = tl.arange(0, BLOCK_D)[None, :]
    r = tl.arange(0, ROWS)[:, None]
    for k in range(begin, end, ROWS):
        inside = (k + r < end) & (d < D)
        total += tl.load(partial + (k + r) * D + d, mask=inside, other=0.0)
    return total


@triton.jit(do_not_specialize=["num_rows"])
def _super_sums_kernel(
    sorted_rows,
    partial,
    super_partial,
    num_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CH: tl.constexpr,
    FAN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write to super_partial[s] the sum of partials s*FAN to (s+1)*FAN if all are of one row."""
    group = tl.program_id(0).to(tl.int64)
    row = tl.load(sorted_rows + group * (CH * FAN))
    last = tl.load(sorted_rows + group * (CH * FAN) + (CH * FAN - 1))
    if (row == last) & (row >= 0) & (row < num_rows):
        d = tl.arange(0, BLOCK_D)[None, :]
        total = tl.zeros([ROWS, BLOCK_D], tl.float32)
        total = _sum_partials(partial, group * FAN, (group + 1) * FAN, total, D, BLOCK_D, ROWS)
        total = tl.sum(total, axis=0, keep_dims=True)
        tl.store(super_partial + group * D + d, total, mask=d < D)


@triton.jit(do_not_specialize=["seed", "num_lookups", "num_rows"])
def _short_runs_kernel(
    grad,
    sorted_rows,
    permutation,
    sources,
    scales,
    ranks,
    weight,
    state0,
    state1,
    hyper,
    seed,
    num_lookups,
    num_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UNROLL: tl.constexpr,
    CH: tl.constexpr,
    LOG_CH: tl.constexpr,
    HAS_SOURCES: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    RANKED: tl.constexpr,
    OPT: tl.constexpr,
    WD: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Update the rows of the short runs that begin among BLOCK_P sorted positions.

    A run's gradients are added one by one in sorted order, so BLOCK_P and UNROLL change no bit of
    the sum.
    """
    position = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    inside = position < num_lookups
    row = tl.load(sorted_rows + position, mask=inside, other=-1)
    before = tl.load(sorted_rows + position - 1, mask=inside & (position > 0), other=-1)
    is_head = inside & (row >= 0) & (row < num_rows) & (row != before)
    # The first full chunk at or after the head; the run holds one if it holds this one's end.
    end = (position + (CH - 1)) // CH * CH + (CH - 1)
    probe = tl.load(sorted_rows + end, mask=is_head & (end < num_lookups), other=-1)
    active = is_head & (probe != row)
    length = active.to(tl.int64)
    for k in tl.static_range(LOG_CH + 1):
        further = position + length + ((CH >> k) - 1)
        probe = tl.load(sorted_rows + further, mask=active & (further < num_lookups), other=-1)
        length += tl.where(active & (probe == row), CH >> k, 0)
    total = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    longest = tl.max(length)
    for j in range(0, longest, UNROLL):
        for u in tl.static_range(UNROLL):
            total += _load_gradient(
                grad,
                permutation,
                sources,
                scales,
                position + j + u,
                j + u < length,
                D,
                BLOCK_D,
                HAS_SOURCES,
                HAS_SCALES,
            )
    target = row.to(tl.int64)
    if RANKED:
        target = tl.load(ranks + position, mask=active, other=0)
    _finish(target, active, total, weight, state0, state1, hyper, seed, D, BLOCK_D, OPT, WD, ROUND)


@triton.jit
def _full_chunks_end(sorted_rows, row, chunk, num_chunks, CH: tl.constexpr):
    """Return the number after the last full chunk of the run of `row`, whose first is `chunk`.

    Each pass narrows [low, high) by a factor of _PROBES; three are enough for 2^27 chunks.
    """
    low = chunk
    high = num_chunks
    for _ in tl.static_range(3):
        width = (high - low + (_PROBES - 1)) // _PROBES
        probe = low + tl.arange(0, _PROBES)[:, None] * width
        last = tl.load(sorted_rows + probe * CH + (CH - 1), mask=probe < high, other=-1)
        count = tl.sum((last == row).to(tl.int64))
        low += (count - 1) * width
        high = tl.minimum(high, low + width)
    return high


@triton.jit(do_not_specialize=["seed", "num_lookups", "num_rows"])
def _long_runs_kernel(
    grad,
    sorted_rows,
    permutation,
    sources,
    scales,
    ranks,
    weight,
    state0,
    state1,
    hyper,
    partial,
    super_partial,
    seed,
    num_lookups,
    num_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CH: tl.constexpr,
    FAN: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_SOURCES: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_SUPER: tl.constexpr,
    RANKED: tl.constexpr,
    OPT: tl.constexpr,
    WD: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Update the row of the run whose first full chunk this is, if it is one's."""
    chunk = tl.program_id(0).to(tl.int64)
    row = tl.load(sorted_rows + chunk * CH)
    last = tl.load(sorted_rows + chunk * CH + (CH - 1))
    before = tl.load(sorted_rows + (chunk - 1) * CH, mask=chunk > 0, other=-1)
    if (row == last) & (row >= 0) & (row < num_rows) & (row != before):
        r = tl.arange(0, ROWS)[:, None]
        num_chunks = tl.cast(num_lookups, tl.int64) // CH
        end = _full_chunks_end(sorted_rows, row, chunk, num_chunks, CH)
        total = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for side in tl.static_range(2):
            # The chunk before the first full one, then the chunk after the last.
            begin = (chunk - 1 if side == 0 else end) * CH
            for k in range(0, CH, ROWS):
                position = begin + k + r
                inside = (position >= 0) & (position < num_lookups)
                is_here = tl.load(sorted_rows + position, mask=inside, other=-1) == row
                total += _load_gradient(
                    grad,
                    permutation,
                    sources,
                    scales,
                    position,
                    is_here,
                    D,
                    BLOCK_D,
                    HAS_SOURCES,
                    HAS_SCALES,
                )
        if HAS_SUPER:
            first_group = tl.minimum((chunk + (FAN - 1)) // FAN, end // FAN)
            end_group = end // FAN
            group_begin = tl.where(first_group < end_group, first_group * FAN, end)
            group_end = tl.where(first_group < end_group, end_group * FAN, end)
            total = _sum_partials(partial, chunk, group_begin, total, D, BLOCK_D, ROWS)
            total = _sum_partials(super_partial, first_group, end_group, total, D, BLOCK_D, ROWS)
            total = _sum_partials(partial, group_end, end, total, D, BLOCK_D, ROWS)
        else:
            total = _sum_partials(partial, chunk, end, total, D, BLOCK_D, ROWS)
        target = tl.full([1, 1], 0, tl.int64) + row
        if RANKED:
            target = tl.full([1, 1], 0, tl.int64) + tl.load(ranks + chunk * CH)
        g = tl.sum(total, axis=0, keep_dims=True)
        _finish(
            target,
            target >= 0,
            g,
            weight,
            state0,
            state1,
            hyper,
            seed,
            D,
            BLOCK_D,
            OPT,
            WD,
            ROUND,
        )
