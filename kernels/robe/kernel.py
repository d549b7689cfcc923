"""ROBE in Triton: one program per block of bags, forward and backward.

Shapes: `N` ids, `F` features, `B` examples, `D` width, `Z` chunk size, `C` chunks, `P` parameters;
a program holds BLOCK_B bags as (BLOCK_B, 1, 1), chunks as (1, BLOCK_C, 1) and elements of a chunk
as (1, 1, BLOCK_Z), so that a chunk is hashed once, not once per element. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recemb.kernels import bag_layout, bag_tile
from recemb.kernels.bag_tile import bag_bounds
from recemb.kernels.hashing.kernel import fmix32, hash_row


@triton.jit
def _starts_of(x, seed, num_params, Z: tl.constexpr, ALIGNED: tl.constexpr):
    """Return where each chunk starts, (BLOCK_B, BLOCK_C, 1) int64."""
    unit: tl.constexpr = Z if ALIGNED else 1
    return hash_row(x, seed, num_params // unit) * unit


@triton.jit
def _elements_of(start, z, num_params, ALIGNED: tl.constexpr):
    """Return which parameter each element is, (BLOCK_B, BLOCK_C, BLOCK_Z) int64; circular."""
    at = start + z
    if not ALIGNED:
        at = tl.where(at >= num_params, at - num_params, at)
    return at


@triton.jit
def _signs_of(x, sign_seed, d, SIGNED: tl.constexpr):
    """Return 1 or -1 for each element, by the top bit of its hash; 1 where signs are off."""
    if SIGNED:
        h = fmix32(tl.cast(x, tl.uint32) ^ tl.cast(sign_seed, tl.uint32))
        h = fmix32(h ^ tl.cast(x >> 32, tl.uint32))
        bit = fmix32(h ^ tl.cast(d, tl.uint32)) >> 31
        sign = tl.where(bit == 0, 1.0, -1.0)
    else:
        sign = tl.full(d.shape, 1.0, tl.float32)
    return sign


@triton.jit
def _robe_bag_forward_kernel(
    params, values, offsets, seeds, sign_seeds, weights, out,
    num_params, num_bags, num_examples, num_features,
    D: tl.constexpr, Z: tl.constexpr, C: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_Z: tl.constexpr, JAGGED: tl.constexpr, WEIGHTED: tl.constexpr,
    MEAN: tl.constexpr, SIGNED: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Write out[b, f] = sum or mean over the bag of a_i * sign * params[start_c(i) + z]."""
    bag = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None, None]
    inside = bag < num_bags
    feature = bag // num_examples
    start, length = bag_bounds(offsets, bag.to(tl.int64), inside, JAGGED)
    c = tl.arange(0, BLOCK_C)[None, :, None]
    z = tl.arange(0, BLOCK_Z)[None, None, :]
    d = c * Z + z
    is_element = (z < Z) & (d < D)
    seed = tl.load(seeds + feature * C + c, mask=inside & (c < C), other=0)
    sign_seed = tl.zeros([BLOCK_B, 1, 1], tl.int64)
    if SIGNED:
        sign_seed = tl.load(sign_seeds + feature, mask=inside, other=0)
    total = tl.zeros([BLOCK_B, BLOCK_C, BLOCK_Z], tl.float32)
    for at in range(0, tl.max(length)):
        is_id = at < length
        x = tl.load(values + start + at, mask=is_id, other=0).to(tl.int64)
        element = _elements_of(_starts_of(x, seed, num_params, Z, ALIGNED), z, num_params, ALIGNED)
        w = tl.load(params + element, mask=is_id & is_element, other=0).to(tl.float32)
        w *= _signs_of(x, sign_seed, d, SIGNED)
        if WEIGHTED:
            w *= tl.load(weights + start + at, mask=is_id, other=0).to(tl.float32)
        total += w
    if MEAN:
        total = total / tl.maximum(length, 1).to(tl.float32)
    to = (bag % num_examples).to(tl.int64) * num_features + feature
    tl.store(out + to * D + d, total, mask=inside & is_element)


@triton.jit
def _robe_bag_backward_kernel(
    grad, params, values, offsets, seeds, sign_seeds, weights,
    grad_elements, starts, grad_weights,
    num_params, num_bags, num_examples, num_features,
    D: tl.constexpr, Z: tl.constexpr, C: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_Z: tl.constexpr, JAGGED: tl.constexpr, WEIGHTED: tl.constexpr,
    MEAN: tl.constexpr, SIGNED: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Write the gradient of every element read, where its chunk starts, and of the weights."""
    bag = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None, None]
    inside = bag < num_bags
    feature = bag // num_examples
    start, length = bag_bounds(offsets, bag.to(tl.int64), inside, JAGGED)
    c = tl.arange(0, BLOCK_C)[None, :, None]
    z = tl.arange(0, BLOCK_Z)[None, None, :]
    d = c * Z + z
    is_element = (z < Z) & (d < D)
    seed = tl.load(seeds + feature * C + c, mask=inside & (c < C), other=0)
    sign_seed = tl.zeros([BLOCK_B, 1, 1], tl.int64)
    if SIGNED:
        sign_seed = tl.load(sign_seeds + feature, mask=inside, other=0)
    source = (bag % num_examples).to(tl.int64) * num_features + feature
    g_bag = tl.load(grad + source * D + d, mask=inside & is_element, other=0).to(tl.float32)
    if MEAN:
        g_bag = g_bag / tl.maximum(length, 1).to(tl.float32)
    for at in range(0, tl.max(length)):
        is_id = at < length
        position = start + at
        x = tl.load(values + position, mask=is_id, other=0).to(tl.int64)
        chunk = _starts_of(x, seed, num_params, Z, ALIGNED)
        tl.store(starts + position * C + c, chunk, mask=is_id & (c < C))
        g = g_bag * _signs_of(x, sign_seed, d, SIGNED)
        if WEIGHTED:
            element = _elements_of(chunk, z, num_params, ALIGNED)
            w = tl.load(params + element, mask=is_id & is_element, other=0).to(tl.float32)
            product = tl.sum(tl.sum(g * w, axis=2, keep_dims=True), axis=1, keep_dims=True)
            tl.store(grad_weights + position, product, mask=is_id)
            g *= tl.load(weights + position, mask=is_id, other=0).to(tl.float32)
        tl.store(grad_elements + position * D + d, g, mask=is_id & is_element)


def robe_bag_forward(
    params: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    seeds: Tensor,
    sign_seeds: Tensor | None,
    weights: Tensor | None,
    width: int,
    chunk_size: int,
    aligned: bool,
    mean: bool,
    block_bags: int | None = None,
) -> Tensor:
    """Return the pooled rows (B, F, D); the arguments are those of the op.

    `block_bags` is BLOCK_B, for tests.
    """
    bag_tile.check_weight("robe_bag", params)
    total_bags, num_features = bag_layout.num_bags(values, offsets), seeds.shape[0]
    num_examples = total_bags // num_features
    out = torch.empty(num_examples, num_features, width, dtype=params.dtype, device=params.device)
    if not out.numel():
        return out
    constants = tile(width, chunk_size, total_bags)
    constants |= _options(offsets, sign_seeds, weights, aligned, mean, block_bags)
    _robe_bag_forward_kernel[(triton.cdiv(total_bags, constants["BLOCK_B"]),)](
        params, values.contiguous(), *_pointers((offsets, seeds, sign_seeds, weights), values), out,
        params.shape[0], total_bags, num_examples, num_features,
        **constants, **bag_tile.launch_options(),
    )  # fmt: skip
    return out


def robe_bag_backward(
    grad: Tensor,
    params: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    seeds: Tensor,
    sign_seeds: Tensor | None,
    weights: Tensor | None,
    width: int,
    chunk_size: int,
    aligned: bool,
    mean: bool,
    block_bags: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of elements (N, D), chunk starts (N, C), and of weights (N,) or (0,)."""
    bag_tile.check_weight("robe_bag", params)
    total_bags, (num_features, num_chunks) = bag_layout.num_bags(values, offsets), seeds.shape
    num_ids = values.shape[0]
    made = (
        params.new_empty(num_ids, width, dtype=torch.float32),
        values.new_empty(num_ids, num_chunks, dtype=torch.int64),
        params.new_empty(0 if weights is None else num_ids, dtype=torch.float32),
    )
    if not total_bags:
        return made
    constants = tile(width, chunk_size, total_bags)
    constants |= _options(offsets, sign_seeds, weights, aligned, mean, block_bags)
    _robe_bag_backward_kernel[(triton.cdiv(total_bags, constants["BLOCK_B"]),)](
        grad.contiguous(), params, values.contiguous(),
        *_pointers((offsets, seeds, sign_seeds, weights), values), *made,
        params.shape[0], total_bags, total_bags // num_features, num_features,
        **constants, **bag_tile.launch_options(),
    )  # fmt: skip
    return made


def tile(width: int, chunk_size: int, num_bags: int) -> dict[str, int]:
    """Return the constexprs of a program's shape; padding of C and Z counts as elements."""
    num_chunks = triton.cdiv(width, chunk_size)
    block_c, block_z = triton.next_power_of_2(num_chunks), triton.next_power_of_2(chunk_size)
    return {
        "D": width,
        "Z": chunk_size,
        "C": num_chunks,
        "BLOCK_B": bag_tile.bags_per_program(block_c * block_z, num_bags, elements=1024),
        "BLOCK_C": block_c,
        "BLOCK_Z": block_z,
    }


def _options(
    offsets: Tensor | None,
    sign_seeds: Tensor | None,
    weights: Tensor | None,
    aligned: bool,
    mean: bool,
    block_bags: int | None,
) -> dict[str, int]:
    options: dict[str, int] = {
        "JAGGED": offsets is not None,
        "WEIGHTED": weights is not None,
        "MEAN": mean,
        "SIGNED": sign_seeds is not None,
        "ALIGNED": aligned,
    }
    return options if block_bags is None else options | {"BLOCK_B": block_bags}


def _pointers(optional: tuple[Tensor | None, ...], stand_in: Tensor) -> list[Tensor]:
    """Return contiguous tensors; `stand_in` for those that the kernel will not read."""
    return [stand_in if tensor is None else tensor.contiguous() for tensor in optional]
