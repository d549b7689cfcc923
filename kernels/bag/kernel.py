"""The pooled lookup and its list of lookups in Triton.

Every quantity of a bag is a column (BLOCK_BAGS, 1) from the start: some versions of Triton cannot
compile the other form. Rows are addressed as `weight + row * D` with a constant D and int64 rows,
so that loads are 128 bits wide and tables of more than 2^31 values are right.

Shapes: `S` slots, `F` features, `B` bags per feature, `N` ids, `M` lookups, `R` rows, `D` width.
"""

import triton
import triton.language as tl

from recemb.kernels.hashing.kernel import hash_row


@triton.jit
def find_rows(x, first_row, num_rows, seed, HASHED: tl.constexpr, POLICY: tl.constexpr):
    """Return the rows (int64) of ids in the buffer; -1 for an ignored id (POLICY 1)."""
    x = tl.cast(x, tl.int64)
    if HASHED:
        return hash_row(x, seed, num_rows) + first_row
    if POLICY == 0:
        return x + first_row
    outside = (x < 0) | (x >= num_rows)
    if POLICY == 1:
        return tl.where(outside, -1, x + first_row)
    return tl.where(outside, 0, x) + first_row


@triton.jit
def find_rows_of_slot(x, first_row, num_rows, seed, is_hashed, POLICY: tl.constexpr):
    """Return what `find_rows` does, `is_hashed` being known at run time only."""
    if is_hashed:
        row = find_rows(x, first_row, num_rows, seed, True, POLICY)
    else:
        row = find_rows(x, first_row, num_rows, seed, False, POLICY)
    return row


@triton.jit
def read_slot(slots, slot, num_slots):
    """Return feature, first row, row count, seed, and whether it hashes and averages."""
    at = slots + slot
    flags = tl.load(at + 4 * num_slots)
    return (
        tl.load(at),
        tl.load(at + num_slots),
        tl.load(at + 2 * num_slots),
        tl.load(at + 3 * num_slots),
        (flags & 1) != 0,
        (flags & 2) != 0,
    )


@triton.jit
def find_bags(offsets, feature, bag, batch_size, ONE_ID: tl.constexpr):
    """Return start and length (int64) of bags (BLOCK, 1); length 0 past the batch's end."""
    at = feature * batch_size + bag
    inside = bag < batch_size
    if ONE_ID:
        return at, tl.where(inside, 1, 0).to(tl.int64)
    start = tl.load(offsets + at, mask=inside, other=0).to(tl.int64)
    end = tl.load(offsets + at + 1, mask=inside, other=0).to(tl.int64)
    return start, end - start


@triton.jit
def scale_bags(
    values,
    start,
    length,
    first_row,
    num_rows,
    is_hashed,
    is_mean,
    BLOCK_BAGS: tl.constexpr,
    POLICY: tl.constexpr,
):
    """Return what each bag's rows are multiplied by (BLOCK_BAGS, 1): 1, or 1 / ids in mean slots.

    Ignored ids do not count, so under that policy the ids are read once to count the others.
    """
    count = length.to(tl.int32)
    if POLICY == 1:
        may_ignore = is_mean & (is_hashed == 0)
        if may_ignore:
            count = tl.zeros([BLOCK_BAGS, 1], tl.int32)
            for i in range(0, tl.max(length)):
                x = tl.load(values + start + i, mask=i < length, other=-1).to(tl.int64)
                count += tl.where((x >= 0) & (x < num_rows), 1, 0)
    return _reciprocal(count, is_mean, BLOCK_BAGS)


@triton.jit
def _reciprocal(count, is_mean, BLOCK_BAGS: tl.constexpr):
    """Return 1 / count (BLOCK_BAGS, 1) of float32, correctly rounded; 1 in sum slots."""
    divisor = tl.where(is_mean, tl.maximum(count, 1), 1).to(tl.float32)
    return tl.div_rn(tl.full([BLOCK_BAGS, 1], 1.0, tl.float32), divisor)


@triton.jit
def _sum_bags(
    weight,
    values,
    weights,
    start,
    length,
    first_row,
    num_rows,
    seed,
    D: tl.constexpr,
    BLOCK_BAGS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UNROLL: tl.constexpr,
    ONE_ID: tl.constexpr,
    HASHED: tl.constexpr,
    POLICY: tl.constexpr,
    WEIGHTED: tl.constexpr,
    FLOAT64: tl.constexpr,
):
    """Return the sums (BLOCK_BAGS, BLOCK_D) in the ids' order, and the ids used (BLOCK_BAGS, 1).

    UNROLL rows are on their way at once: all are asked for before the first is added.
    """
    accumulator: tl.constexpr = tl.float64 if FLOAT64 else tl.float32
    column = tl.arange(0, BLOCK_D)[None, :]
    total = tl.zeros([BLOCK_BAGS, BLOCK_D], accumulator)
    count = tl.zeros([BLOCK_BAGS, 1], tl.int32)
    longest = 1 if ONE_ID else tl.max(length)
    for first in range(0, longest, UNROLL):
        # Below, mypy takes an empty tuple's type for that of all that follow.
        tiles = ()
        factors = ()
        for u in tl.static_range(UNROLL):
            at = start + first + u
            inside = first + u < length
            x = tl.load(values + at, mask=inside, other=0)
            row = find_rows(x, first_row, num_rows, seed, HASHED, POLICY)
            row = tl.where(inside, row, -1)
            used = row >= 0
            address = weight + row * D + column
            tile = tl.load(address, mask=used & (column < D), other=0.0)
            tiles += (tile,)  # type: ignore[assignment]
            if WEIGHTED:
                factor = tl.load(weights + at, mask=used, other=0.0)
                factors += (factor,)  # type: ignore[assignment]
            count += tl.where(used, 1, 0)
        for u in tl.static_range(UNROLL):
            if WEIGHTED:
                total += tiles[u].to(accumulator) * factors[u].to(accumulator)
            else:
                total += tiles[u].to(accumulator)
    return total, count


@triton.jit
def _bag_forward_kernel(
    weight,
    values,
    offsets,
    weights,
    slots,
    out,
    batch_size,
    num_slots,
    D: tl.constexpr,
    BLOCK_BAGS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UNROLL: tl.constexpr,
    ONE_ID: tl.constexpr,
    POLICY: tl.constexpr,
    WEIGHTED: tl.constexpr,
    FLOAT64: tl.constexpr,
):
    """Write one slot's columns of BLOCK_BAGS bags: out[b, s] = scale * sum of weight * row.

    Programs go slot after slot, so that a table's hot rows stay in the L2 cache. Whether a slot
    hashes is asked once per program, outside the loop.
    """
    num_blocks = tl.cdiv(batch_size, BLOCK_BAGS)
    slot = tl.program_id(0) // num_blocks
    block = tl.program_id(0) % num_blocks
    feature, first_row, num_rows, seed, is_hashed, is_mean = read_slot(slots, slot, num_slots)
    bag = block * BLOCK_BAGS + tl.arange(0, BLOCK_BAGS)[:, None]
    start, length = find_bags(offsets, feature, bag, batch_size, ONE_ID)
    if is_hashed:
        total, count = _sum_bags(
            weight, values, weights, start, length, first_row, num_rows, seed,
            D, BLOCK_BAGS, BLOCK_D, UNROLL, ONE_ID, True, POLICY, WEIGHTED, FLOAT64,
        )  # fmt: skip
    else:
        total, count = _sum_bags(
            weight, values, weights, start, length, first_row, num_rows, seed,
            D, BLOCK_BAGS, BLOCK_D, UNROLL, ONE_ID, False, POLICY, WEIGHTED, FLOAT64,
        )  # fmt: skip
    total = total * _reciprocal(count, is_mean, BLOCK_BAGS)
    column = tl.arange(0, BLOCK_D)[None, :]
    at = (bag.to(tl.int64) * num_slots + slot) * D + column
    mask = (bag < batch_size) & (column < D)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _bag_rows_kernel(
    values,
    offsets,
    weights,
    slots,
    rows,
    sources,
    scales,
    batch_size,
    num_slots,
    num_lookups,
    sentinel,
    BLOCK_BAGS: tl.constexpr,
    BLOCK_IDS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    ONE_ID: tl.constexpr,
    POLICY: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Write row, source b * S + s and scale of the lookups of one slot's BLOCK_BAGS bags.

    A slot's lookups stand behind those of the slots before it; the last slot's programs share the
    rest up to `num_lookups`, where they write the sentinel.
    """
    num_blocks = tl.cdiv(batch_size, BLOCK_BAGS)
    slot = tl.program_id(0) // num_blocks
    block = tl.program_id(0) % num_blocks
    feature, first_row, num_rows, seed, is_hashed, is_mean = read_slot(slots, slot, num_slots)
    bag = block * BLOCK_BAGS + tl.arange(0, BLOCK_BAGS)[:, None]
    start, length = find_bags(offsets, feature, bag, batch_size, ONE_ID)
    if ONE_ID:
        base = slot.to(tl.int64) * batch_size
        feature_start = feature * batch_size
        past = tl.cast(num_slots, tl.int64) * batch_size
    else:
        other = tl.arange(0, BLOCK_SLOTS)
        features = tl.load(slots + other, mask=other < num_slots, other=0)
        low = tl.load(offsets + features * batch_size).to(tl.int64)
        size = tl.load(offsets + (features + 1) * batch_size).to(tl.int64) - low
        base = tl.sum(tl.where(other < slot, size, 0))
        past = tl.sum(tl.where(other < num_slots, size, 0))
        feature_start = tl.load(offsets + feature * batch_size).to(tl.int64)
    if SCALED:
        scale = scale_bags(
            values, start, length, first_row, num_rows, is_hashed, is_mean, BLOCK_BAGS, POLICY
        )
    id_number = tl.arange(0, BLOCK_IDS)[None, :]
    source = (bag * num_slots + slot).to(tl.int32)
    for first in range(0, tl.max(length), BLOCK_IDS):
        inside = first + id_number < length
        at = start + first + id_number
        to = base + at - feature_start
        inside = inside & (to < num_lookups)
        x = tl.load(values + at, mask=inside, other=0)
        row = find_rows_of_slot(x, first_row, num_rows, seed, is_hashed, POLICY)
        row = tl.where(row < 0, sentinel, row)
        tl.store(rows + to, row.to(rows.dtype.element_ty), mask=inside)
        tl.store(sources + to, tl.broadcast_to(source, [BLOCK_BAGS, BLOCK_IDS]), mask=inside)
        if SCALED:
            factor = tl.broadcast_to(scale, [BLOCK_BAGS, BLOCK_IDS])
            if WEIGHTED:
                factor = factor * tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(scales + to, factor, mask=inside)
    if slot == num_slots - 1:
        step: tl.constexpr = BLOCK_BAGS * BLOCK_IDS
        past += block * step
        _fill_tail(
            rows, sources, scales, past, num_lookups, num_blocks * step, sentinel, step, SCALED
        )


@triton.jit
def _fill_tail(
    rows,
    sources,
    scales,
    start,
    num_lookups,
    stride,
    sentinel,
    STEP: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Write the sentinel, and zeros, at STEP positions from `start` and every `stride` on."""
    nothing = tl.zeros([STEP], tl.int32)
    for first in range(start, num_lookups, stride):
        to = first + tl.arange(0, STEP)
        inside = to < num_lookups
        tl.store(rows + to, (nothing + sentinel).to(rows.dtype.element_ty), mask=inside)
        tl.store(sources + to, nothing, mask=inside)
        if SCALED:
            tl.store(scales + to, nothing.to(tl.float32), mask=inside)
