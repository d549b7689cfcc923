"""The search in Triton: dots, selection and weighted sums, in one launch or in several.

Shapes: `B` examples, `L` places in a history, `K` selected, `D` width of a table, `R` rows. A
program serves one example; BLOCK rows at a time are a tile (BLOCK, BLOCK_D), and what belongs to
a row is a column (BLOCK, 1). No kernel has an atomic or a second writer.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from recemb.kernels import bag_tile
from recemb.kernels.search_attention import reference

MAX_FUSED_LENGTH = 2048
"""Histories beyond it are scored by many programs each, for one alone would take too long."""

MAX_LENGTH = 8192
"""The selection holds so many scores in registers, and twice as many spilled; longer histories are
selected from in pieces."""


@triton.jit
def _load_rows(table, ids, base, place, inside, num_rows, d, D: tl.constexpr):
    """Return the rows, float32, of the ids at `base + place`; zeros for those outside."""
    row = tl.load(ids + base + place, mask=inside, other=-1).to(tl.int64)
    present = (row >= 0) & (row < num_rows) & inside
    return tl.load(table + row * D + d, mask=present & (d < D), other=0).to(tl.float32)


@triton.jit
def _write_dots(
    table, ids, positions, vector, scores, example, start, stop, size, k, num_rows,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    SELECTED: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Write, or add, the dots of the rows in [start, stop) of a history with `vector` (D,)."""
    d = tl.arange(0, BLOCK_D)[None, :]
    v = tl.load(vector + d, mask=d < D, other=0).to(tl.float32)
    for first in range(start, stop, BLOCK):
        place = first + tl.arange(0, BLOCK)[:, None]
        inside = place < stop
        at = scores + example * (k if SELECTED else size) + place
        if SELECTED:
            chosen = tl.load(positions + example * k + place, mask=inside, other=-1)
            rows = _load_rows(
                table, ids, example * size, chosen, inside & (chosen >= 0), num_rows, d, D
            )
        else:
            rows = _load_rows(table, ids, example * size, place, inside, num_rows, d, D)
        dots = tl.sum(rows * v, axis=1, keep_dims=True)
        if ADD:
            dots += tl.load(at, mask=inside, other=0)
        tl.store(at, dots, mask=inside)


@triton.jit
def _write_selection(
    scores, positions, probabilities, example, length, size, k,
    BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write where the K greatest scores are, ascending, and their softmax; then -1 and 0.

    The K-th greatest key is found bit by bit; keys above it are in, and so are the first of those
    equal to it, until there are K.
    """
    place = tl.arange(0, BLOCK_L)
    valid = place < length
    score = tl.load(scores + example * size + place, mask=valid, other=0)
    # Without the comparison -0.0 would rank below 0.0.
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    # Unsigned integers in the order of the floats: a negative number has all its bits inverted.
    key = (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)
    wanted = tl.minimum(length, k)
    bit = tl.full([1], 2147483648, tl.uint32)
    limit = tl.full([1], 0, tl.uint32)
    for _ in range(32):
        trial = limit | bit
        count = tl.sum((valid & (key >= trial)).to(tl.int32), axis=0)
        limit = tl.where(count >= wanted, trial, limit)
        bit = bit >> 1
    above = valid & (key > limit)
    equal = valid & (key == limit)
    room = wanted - tl.sum(above.to(tl.int32), axis=0)
    # One scan counts both kinds: those above in the lower 16 bits, those equal in the upper.
    counts = tl.cumsum(above.to(tl.int32) + (equal.to(tl.int32) << 16), axis=0)
    num_equal = counts >> 16
    taken = above | (equal & (num_equal <= room))
    slot = (counts & 65535) + tl.minimum(num_equal, room) - 1
    greatest = tl.max(tl.where(taken, score, -float("inf")), axis=0)
    greatest = tl.where(wanted > 0, greatest, 0.0)
    raised = tl.where(taken, tl.exp(tl.where(taken, score, greatest) - greatest), 0.0)
    total = tl.where(wanted > 0, tl.sum(raised, axis=0), 1.0)
    # A base and 32-bit places need half the registers of 64-bit places.
    to_positions = positions + example * k
    to_probabilities = probabilities + example * k
    tl.store(to_positions + slot, place.to(tl.int64), mask=taken)
    tl.store(to_probabilities + slot, raised / total, mask=taken)
    rest = tl.arange(0, BLOCK_K)
    is_rest = (rest >= wanted) & (rest < k)
    tl.store(to_positions + rest, tl.full([BLOCK_K], -1, tl.int64), mask=is_rest)
    tl.store(to_probabilities + rest, tl.zeros([BLOCK_K], tl.float32), mask=is_rest)


@triton.jit
def _write_sum(
    table, ids, positions, coefficients, out, example, size, k, num_rows,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write to `out` (D,) the sum of the selected rows times their coefficients."""
    d = tl.arange(0, BLOCK_D)[None, :]
    total = tl.zeros([1, BLOCK_D], tl.float32)
    for first in range(0, k, BLOCK):
        slot = first + tl.arange(0, BLOCK)[:, None]
        inside = slot < k
        chosen = tl.load(positions + example * k + slot, mask=inside, other=-1)
        factor = tl.load(coefficients + example * k + slot, mask=inside, other=0)
        rows = _load_rows(
            table, ids, example * size, chosen, inside & (chosen >= 0), num_rows, d, D
        )
        total += tl.sum(rows * factor, axis=0, keep_dims=True)
    tl.store(out + d, total.to(out.dtype.element_ty), mask=d < D)


@triton.jit
def _length_of(lengths, example, size):
    """Return the number of behaviours, int32, in [0, size]."""
    length = tl.load(lengths + example).to(tl.int64)
    return tl.minimum(tl.maximum(length, 0), size).to(tl.int32)


@triton.jit
def _search_dots_kernel(
    table, ids, positions, lengths, vector, scores, size, k, num_rows, vector_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    SELECTED: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Write or add one part's dots (B, L), or (B, K) of what is selected; grid (B, blocks)."""
    example = tl.program_id(0).to(tl.int64)
    stop = k if SELECTED else _length_of(lengths, example, size)
    start = tl.program_id(1) * BLOCK
    _write_dots(
        table, ids, positions, vector + example * vector_stride, scores,
        example, start, tl.minimum(stop, start + BLOCK), size, k, num_rows,
        D, BLOCK_D, BLOCK, SELECTED, ADD,
    )  # fmt: skip


@triton.jit
def _search_select_kernel(
    scores, lengths, positions, probabilities, size, k,
    BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write the selection of each example; grid (B,)."""
    example = tl.program_id(0).to(tl.int64)
    length = _length_of(lengths, example, size)
    _write_selection(
        scores, positions, probabilities, example, length, size, k, BLOCK_L, BLOCK_K
    )  # fmt: skip


@triton.jit
def _search_sum_kernel(
    table, ids, positions, coefficients, out, size, k, num_rows, out_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one part's weighted sum, from `out` on, every `out_stride`; grid (B,)."""
    example = tl.program_id(0).to(tl.int64)
    _write_sum(
        table, ids, positions, coefficients, out + example * out_stride,
        example, size, k, num_rows, D, BLOCK_D, BLOCK,
    )  # fmt: skip


@triton.jit
def _search_attention_kernel(
    attention, representation, ids, lengths, target, scores, positions, probabilities, out,
    size, k, num_attention_rows, num_representation_rows,
    DA: tl.constexpr, BLOCK_DA: tl.constexpr, BLOCK_A: tl.constexpr,
    DR: tl.constexpr, BLOCK_DR: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Score, select and sum one part in one launch; grid (B,).

    The barriers make what some threads of the program wrote visible to its other threads, which
    CUDA promises; AMD's compiler does not wait for the stores there, so AMD gets several launches.
    """
    example = tl.program_id(0).to(tl.int64)
    length = _length_of(lengths, example, size)
    _write_dots(
        attention, ids, positions, target + example * DA, scores,
        example, 0, length, size, k, num_attention_rows, DA, BLOCK_DA, BLOCK_A, False, False,
    )  # fmt: skip
    tl.debug_barrier()
    _write_selection(
        scores, positions, probabilities, example, length, size, k, BLOCK_L, BLOCK_K
    )  # fmt: skip
    tl.debug_barrier()
    _write_sum(
        representation, ids, positions, probabilities, out + example * DR,
        example, size, k, num_representation_rows, DR, BLOCK_DR, BLOCK_R,
    )  # fmt: skip


def search_attention_forward(
    attention: Sequence[Tensor],
    representation: Sequence[Tensor],
    histories: Sequence[Tensor],
    targets: Sequence[Tensor],
    lengths: Tensor,
    k: int,
    is_fused: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums (B, sum of DR), positions (B, K) and probabilities (B, K); arguments: the op's.

    `is_fused` chooses one launch or several, for tests; by default one where that can be.

    Raises:
        ValueError: if a table is not what the kernels read, or the histories are too long.
    """
    for table in (*attention, *representation):
        bag_tile.check_weight("search_attention", table)
    batch, size = histories[0].shape
    _check_length(size, k)
    device = lengths.device
    width = sum(table.shape[1] for table in representation)
    out = torch.empty(batch, width, dtype=representation[0].dtype, device=device)
    positions = torch.empty(batch, k, dtype=torch.int64, device=device)
    probabilities = torch.empty(batch, k, dtype=torch.float32, device=device)
    scores = torch.empty(batch, size, dtype=torch.float32, device=device)
    if not batch:
        return out, positions, probabilities
    if is_fused is None:
        is_one = len(attention) == 1 and size <= MAX_FUSED_LENGTH
        is_fused = is_one and torch.version.hip is None
    lengths = lengths.contiguous()
    ids = [history.contiguous() for history in histories]
    if is_fused:
        tables = (attention[0], representation[0])
        (_, da, block_da, block_a), (_, dr, block_dr, block_r) = map(_tile, tables)
        _search_attention_kernel[(batch,)](
            *tables, ids[0], lengths, targets[0].contiguous(), scores, positions, probabilities,
            out, size, k, tables[0].shape[0], tables[1].shape[0],
            DA=da, BLOCK_DA=block_da, BLOCK_A=block_a,
            DR=dr, BLOCK_DR=block_dr, BLOCK_R=block_r, **selection_options(size, k),
        )  # fmt: skip
        return out, positions, probabilities
    _launch_dots(attention, ids, targets, scores, lengths=lengths, k=k)
    _select(scores, lengths, positions, probabilities)
    _launch_sums(representation, ids, positions, probabilities, out)
    return out, positions, probabilities


def search_attention_backward(
    grad: Tensor,
    grad_probabilities: Tensor,
    attention: Sequence[Tensor],
    representation: Sequence[Tensor],
    histories: Sequence[Tensor],
    positions: Tensor,
    probabilities: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the selected scores (B, K) and of the targets (B, sum of DA)."""
    for table in (*attention, *representation):
        bag_tile.check_weight("search_attention_backward", table)
    batch, k = positions.shape
    width = sum(table.shape[1] for table in attention)
    of_targets = torch.empty(batch, width, dtype=torch.float32, device=grad.device)
    dots = torch.empty(batch, k, dtype=torch.float32, device=grad.device)
    if not batch:
        return dots, of_targets
    ids = [history.contiguous() for history in histories]
    vectors = grad.split([table.shape[1] for table in representation], dim=1)
    _launch_dots(representation, ids, vectors, dots, positions=positions, k=k)
    grad_scores = reference.softmax_gradient(dots + grad_probabilities, probabilities)
    _launch_sums(attention, ids, positions, grad_scores, of_targets)
    return grad_scores, of_targets


def selection_options(size: int, k: int) -> dict[str, object]:
    """Return blocks, warps and register limit of a program that selects K among `size` scores.

    Up to 16 scores per thread; few warps for many scores run out of registers.
    """
    return {
        "BLOCK_L": triton.next_power_of_2(size),
        "BLOCK_K": triton.next_power_of_2(k),
        **bag_tile.launch_options(),
        "num_warps": 4 if size <= 512 else 8 if size <= 2048 else 16,
    }


def _check_length(size: int, k: int) -> None:
    """Check that what the pieces of a history keep can be selected from at once.

    Raises:
        ValueError: if it is too much.
    """
    if size > MAX_LENGTH and triton.cdiv(size, MAX_LENGTH) * k > MAX_LENGTH:
        longest = MAX_LENGTH * max(1, MAX_LENGTH // k)
        raise ValueError(
            f"search_attention: histories may have {longest} places on a GPU for k = {k}, "
            f"got {size}; keep the last ones, or lower k"
        )


def _select(scores: Tensor, lengths: Tensor, positions: Tensor, probabilities: Tensor) -> None:
    """Fill `positions` and `probabilities` (B, K), given scores (B, L), in pieces if L is great.

    The K greatest of each piece are candidates, and the K greatest of those are what is wanted.
    Candidates have the order of the history, and those that there are come before those that a
    short piece lacks, for only the last piece of a history is short; so ties and lengths are
    treated as in one piece.
    """
    (batch, size), k = scores.shape, positions.shape[1]
    if size <= MAX_LENGTH:
        _search_select_kernel[(batch,)](
            scores, lengths, positions, probabilities, size, k, **selection_options(size, k)
        )
        return
    pieces = triton.cdiv(size, MAX_LENGTH)
    padded = torch.nn.functional.pad(scores, (0, pieces * MAX_LENGTH - size))
    first = torch.arange(pieces, device=scores.device) * MAX_LENGTH
    of_pieces = (lengths.clamp(0, size).unsqueeze(1) - first).clamp(0, MAX_LENGTH)
    found = positions.new_empty(batch, pieces, k)
    unused = probabilities.new_empty(batch, pieces, k)
    _select(padded.view(-1, MAX_LENGTH), of_pieces.view(-1), found.view(-1, k), unused.view(-1, k))
    places = (found.clamp(min=0) + first.unsqueeze(1)).view(batch, -1)
    _select(padded.gather(1, places), of_pieces.clamp(max=k).sum(1), positions, probabilities)
    at = places.gather(1, positions.clamp(min=0))
    positions.copy_(torch.where(positions < 0, -1, at))


def _launch_dots(
    tables: Sequence[Tensor],
    ids: Sequence[Tensor],
    vectors: Sequence[Tensor],
    scores: Tensor,
    *,
    k: int,
    lengths: Tensor | None = None,
    positions: Tensor | None = None,
) -> None:
    """Fill `scores` for whole histories, given `lengths`, or for what is at `positions`."""
    batch, count = scores.shape
    for part, (table, history, vector) in enumerate(zip(tables, ids, vectors, strict=True)):
        rows, width, block_d, block = _tile(table)
        aligned = vector if vector.stride(1) == 1 else vector.contiguous()
        _search_dots_kernel[(batch, triton.cdiv(count, block))](
            table, history, history if positions is None else positions,
            history if lengths is None else lengths, aligned, scores,
            history.shape[1], k, rows, aligned.stride(0),
            D=width, BLOCK_D=block_d, BLOCK=block,
            SELECTED=positions is not None, ADD=part > 0, **bag_tile.launch_options(),
        )  # fmt: skip


def _launch_sums(
    tables: Sequence[Tensor],
    ids: Sequence[Tensor],
    positions: Tensor,
    coefficients: Tensor,
    out: Tensor,
) -> None:
    """Fill `out` (B, sum of D), part by part."""
    batch, k = positions.shape
    first = 0
    for table, history in zip(tables, ids, strict=True):
        rows, width, block_d, block = _tile(table)
        _search_sum_kernel[(batch,)](
            table, history, positions, coefficients, out[:, first:],
            history.shape[1], k, rows, out.stride(0),
            D=width, BLOCK_D=block_d, BLOCK=block, **bag_tile.launch_options(),
        )  # fmt: skip
        first += width


def _tile(table: Tensor) -> tuple[int, int, int, int]:
    """Return R, D, BLOCK_D and the rows of a tile: 2048 elements, 16 per thread of four warps."""
    rows, width = table.shape
    block_d = triton.next_power_of_2(width)
    return rows, width, block_d, min(max(2048 // block_d, 1), 128)
