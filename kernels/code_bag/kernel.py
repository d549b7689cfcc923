"""The code bag in Triton: one program per block of bags, forward and backward; no atomics.

Shapes: `N` ids, `F` features, `B` examples, `P` parts, `K` centroids of a part, `Z` width of a
part, `D` = P * Z, `LB` bytes of a row of codes; a program holds BLOCK_B bags as (BLOCK_B, 1, 1),
parts as (1, BLOCK_P, 1) and elements of a part as (1, 1, BLOCK_Z), so that a code is unpacked for
a part, not for each of its elements.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recemb.kernels import bag_layout, bag_tile
from recemb.kernels.bag_tile import bag_bounds, load_id
from recemb.kernels.code_bag.packing import bytes_of_code, row_bytes

FORWARD_ELEMENTS = 2048
"""BLOCK_B * BLOCK_P * BLOCK_Z, 16 sums per thread of four warps."""

BACKWARD_ELEMENTS = 1024
"""Likewise; a program holds the gradient too."""


@triton.jit
def _load_codes(codes, row, present, p, P: tl.constexpr, LB: tl.constexpr, BITS: tl.constexpr,
                SPAN: tl.constexpr):  # fmt: skip
    """Return code p of each row, (BLOCK_B, BLOCK_P, 1) int64, zero where absent.

    A code may begin in one byte and end SPAN - 1 bytes later, but never behind the row.
    """
    byte = p * BITS // 8
    word = tl.zeros([1, 1, 1], tl.int32)
    for k in tl.static_range(SPAN):
        inside = present & (p < P) & (byte + k < LB)
        part = tl.load(codes + row * LB + (byte + k), mask=inside, other=0)
        word = word | (part.to(tl.int32) << (8 * k))
    return ((word >> (p * BITS % 8)) & ((1 << BITS) - 1)).to(tl.int64)


@triton.jit
def _entries_of(code, feature, p, P: tl.constexpr, K: tl.constexpr, PER_FEATURE: tl.constexpr):
    """Return which row of the codebooks, taken as (.., Z), each code means; int64."""
    book = p.to(tl.int64)
    if PER_FEATURE:
        book = book + feature.to(tl.int64) * P
    return book * K + code


@triton.jit
def _code_bag_forward_kernel(
    codes, codebooks, values, offsets, weights, out, num_bags, num_examples, num_features,
    P: tl.constexpr, K: tl.constexpr, Z: tl.constexpr, LB: tl.constexpr, BITS: tl.constexpr,
    SPAN: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Z: tl.constexpr,
    UNROLL: tl.constexpr, JAGGED: tl.constexpr, WEIGHTED: tl.constexpr, MEAN: tl.constexpr,
    PER_FEATURE: tl.constexpr,
):  # fmt: skip
    """Write out[b, f, p] = sum or mean over the bag of a_i * codebooks[f, p, code_p(i)]."""
    bag = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None, None]
    inside = bag < num_bags
    feature = bag // num_examples
    start, length = bag_bounds(offsets, bag.to(tl.int64), inside, JAGGED)
    p = tl.arange(0, BLOCK_P)[None, :, None]
    z = tl.arange(0, BLOCK_Z)[None, None, :]
    is_element = (p < P) & (z < Z)
    total = tl.zeros([BLOCK_B, BLOCK_P, BLOCK_Z], tl.float32)
    count = tl.zeros([BLOCK_B, 1, 1], tl.float32)
    for first in range(0, tl.max(length), UNROLL):
        for step in tl.static_range(UNROLL):
            is_id = first + step < length
            position = start + first + step
            row = load_id(values, position, is_id)
            present = row >= 0
            code = _load_codes(codes, row, present, p, P, LB, BITS, SPAN)
            entry = _entries_of(code, feature, p, P, K, PER_FEATURE)
            w = tl.load(codebooks + entry * Z + z, mask=present & is_element, other=0)
            w = w.to(tl.float32)
            if WEIGHTED:
                w *= tl.load(weights + position, mask=present, other=0).to(tl.float32)
            total += w
            count += present.to(tl.float32)
    if MEAN:
        total = total / tl.maximum(count, 1.0)
    to = (bag % num_examples).to(tl.int64) * num_features + feature
    tl.store(out + to * (P * Z) + p * Z + z, total, mask=inside & is_element)


@triton.jit
def _code_bag_backward_kernel(
    grad, codes, codebooks, values, offsets, weights, entries, sources, scales, grad_weights,
    num_bags, num_examples, num_features,
    P: tl.constexpr, K: tl.constexpr, Z: tl.constexpr, LB: tl.constexpr, BITS: tl.constexpr,
    SPAN: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Z: tl.constexpr,
    JAGGED: tl.constexpr, WEIGHTED: tl.constexpr, MEAN: tl.constexpr, PER_FEATURE: tl.constexpr,
):  # fmt: skip
    """Write the codebooks' row, the gradient's row and the factor of every code, and d weights."""
    bag = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None, None]
    inside = bag < num_bags
    feature = bag // num_examples
    start, length = bag_bounds(offsets, bag.to(tl.int64), inside, JAGGED)
    longest = tl.max(length)
    p = tl.arange(0, BLOCK_P)[None, :, None]
    z = tl.arange(0, BLOCK_Z)[None, None, :]
    is_element = (p < P) & (z < Z)
    source = (bag % num_examples).to(tl.int64) * num_features + feature
    pooling = tl.full([BLOCK_B, 1, 1], 1.0, tl.float32)
    if MEAN:
        count = tl.zeros([BLOCK_B, 1, 1], tl.float32)
        for at in range(0, longest):
            count += (load_id(values, start + at, at < length) >= 0).to(tl.float32)
        pooling = pooling / tl.maximum(count, 1.0)
    g = tl.zeros([BLOCK_B, BLOCK_P, BLOCK_Z], tl.float32)
    if WEIGHTED:
        of_bag = grad + source * (P * Z) + p * Z + z
        g = tl.load(of_bag, mask=inside & is_element, other=0).to(tl.float32)
    for at in range(0, longest):
        is_id = at < length
        position = start + at
        row = load_id(values, position, is_id)
        present = row >= 0
        code = _load_codes(codes, row, present, p, P, LB, BITS, SPAN)
        entry = _entries_of(code, feature, p, P, K, PER_FEATURE)
        to = position * P + p
        is_code = is_id & (p < P)
        tl.store(entries + to, tl.where(present, entry, -1), mask=is_code)
        tl.store(sources + to, source * P + p, mask=is_code)
        scale = tl.where(present, pooling, 0.0)
        if WEIGHTED:
            w = tl.load(codebooks + entry * Z + z, mask=present & is_element, other=0)
            product = g * w.to(tl.float32)
            product = tl.sum(tl.sum(product, axis=2, keep_dims=True), axis=1, keep_dims=True)
            tl.store(grad_weights + position, product * scale, mask=is_id)
            scale *= tl.load(weights + position, mask=present, other=0).to(tl.float32)
        if WEIGHTED or MEAN:
            tl.store(scales + to, scale + tl.zeros([1, BLOCK_P, 1], tl.float32), mask=is_code)


def code_bag_forward(
    codes: Tensor,
    codebooks: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    bits: int,
    num_features: int,
    mean: bool,
    block_bags: int | None = None,
) -> Tensor:
    """Return the pooled vectors (B, F, D); the arguments are those of the op.

    `block_bags` is BLOCK_B, for tests.
    """
    _check(codes, codebooks)
    total_bags = bag_layout.num_bags(values, offsets)
    num_parts, _, part_width = codebooks.shape[-3:]
    num_examples = total_bags // num_features
    shape = (num_examples, num_features, num_parts * part_width)
    out = torch.empty(shape, dtype=codebooks.dtype, device=codebooks.device)
    if not out.numel():
        return out
    constants = tile(codebooks, bits, total_bags, block_bags, elements=FORWARD_ELEMENTS)
    constants |= _options(codebooks, offsets, weights, mean)
    _code_bag_forward_kernel[(triton.cdiv(total_bags, constants["BLOCK_B"]),)](
        codes, codebooks, values.contiguous(), *_pointers((offsets, weights), values), out,
        total_bags, num_examples, num_features,
        UNROLL=1 if offsets is None else 2, **constants, **bag_tile.launch_options(),
    )  # fmt: skip
    return out


def code_bag_backward(
    grad: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    bits: int,
    num_features: int,
    mean: bool,
    block_bags: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the op `code_bag_backward` returns."""
    _check(codes, codebooks)
    total_bags = bag_layout.num_bags(values, offsets)
    num_ids, num_parts = values.shape[0], codebooks.shape[-3]
    is_scaled = weights is not None or mean
    made = (
        values.new_empty(num_ids, num_parts, dtype=torch.int32),
        values.new_empty(num_ids, num_parts, dtype=torch.int64),
        codebooks.new_empty(num_ids if is_scaled else 0, num_parts, dtype=torch.float32),
        codebooks.new_empty(0 if weights is None else num_ids, dtype=torch.float32),
    )
    if not num_ids:
        return made
    constants = tile(codebooks, bits, total_bags, block_bags, elements=BACKWARD_ELEMENTS)
    constants |= _options(codebooks, offsets, weights, mean)
    _code_bag_backward_kernel[(triton.cdiv(total_bags, constants["BLOCK_B"]),)](
        grad.contiguous(), codes, codebooks, values.contiguous(),
        *_pointers((offsets, weights), values), *made,
        total_bags, total_bags // num_features, num_features,
        **constants, **bag_tile.launch_options(),
    )  # fmt: skip
    return made


def tile(
    codebooks: Tensor, bits: int, num_bags: int, block_bags: int | None, *, elements: int
) -> dict[str, int]:
    """Return the constexprs of a program's shape; padding of P and Z counts as elements."""
    num_parts, num_centroids, part_width = codebooks.shape[-3:]
    block_p, block_z = triton.next_power_of_2(num_parts), triton.next_power_of_2(part_width)
    chosen = bag_tile.bags_per_program(block_p * block_z, num_bags, elements=elements)
    return {
        "P": num_parts,
        "K": num_centroids,
        "Z": part_width,
        "LB": row_bytes(num_parts, bits),
        "BITS": bits,
        "SPAN": bytes_of_code(bits),
        "BLOCK_B": block_bags or chosen,
        "BLOCK_P": block_p,
        "BLOCK_Z": block_z,
    }


def _options(
    codebooks: Tensor, offsets: Tensor | None, weights: Tensor | None, mean: bool
) -> dict[str, int]:
    return {
        "JAGGED": offsets is not None,
        "WEIGHTED": weights is not None,
        "MEAN": mean,
        "PER_FEATURE": codebooks.dim() == 4,
    }


def _check(codes: Tensor, codebooks: Tensor) -> None:
    bag_tile.check_weight("code_bag", codebooks)
    if not codes.is_contiguous():
        raise ValueError("code_bag: codes must be contiguous; call .contiguous() once, not here")


def _pointers(optional: tuple[Tensor | None, ...], stand_in: Tensor) -> list[Tensor]:
    """Return contiguous tensors; `stand_in` for those that the kernel will not read."""
    return [stand_in if tensor is None else tensor.contiguous() for tensor in optional]
