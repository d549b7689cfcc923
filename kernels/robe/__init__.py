"""ROBE: rows made of chunks that lie anywhere in one flat array of parameters.

    row(x)[c * Z + z] = sign(x, c * Z + z) * params[(start(x, c) + z) mod P]

Shapes: `N` ids, `F` features, `B` examples, `D` width, `Z` chunk size (the LENGTH of a chunk, not
the number of chunks), `C` = ceil(D / Z) chunks, `P` parameters.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from recemb.kernels import bag_layout
from recemb.kernels.bag_update import dense_gradient
from recemb.kernels.hashing import MAX_ROWS
from recemb.kernels.robe import reference
from recemb.kernels.robe.reference import elements_of

__all__ = ["RobeGradients", "elements_of", "robe_bag", "robe_bag_backward"]


class RobeGradients(NamedTuple):
    """The gradients of one lookup, in float32 (float64 for float64 parameters).

    Nothing is summed where chunks coincide. Aligned, `elements.view(-1, Z)` and
    `starts.flatten() // Z` are rows of `params.view(-1, Z)`; else `elements_of(starts, D, Z, P)`
    says which parameter each element is.

    Attributes:
        elements: (N, D), of the parameter behind each element of each id.
        starts: (N, C) int64, where each chunk starts.
        weights: (N,), or None without weights.
    """

    elements: Tensor
    starts: Tensor
    weights: Tensor | None


def robe_bag(
    params: Tensor,
    values: Tensor,
    offsets: Tensor | None = None,
    *,
    width: int,
    chunk_size: int,
    seeds: Tensor,
    sign_seeds: Tensor | None = None,
    aligned: bool = False,
    weights: Tensor | None = None,
    pooling: str = "sum",
) -> Tensor:
    """Return pooled rows (B, F, D) of the parameters' type.

    Chunk c of id x of feature f starts at hash(x, seeds[f, c]) in [0, P) and goes round the end.
    Aligned, it is slot hash(x, seeds[f, c]) of the P / Z slots of Z parameters: chunks then
    coincide wholly or not at all, so the gradient is summed by slot instead of by parameter.

    DETERMINISM: bit-equal repeats, forward and backward; no atomics, though chunks overlap.
    ACCUMULATION: float32, ids in their order.
    SAVED FOR BACKWARD: the arguments, nothing else; ids are hashed again.
    GRADIENTS: of `params` (dense, as the array is small) and `weights`. Unaligned, the gradient of
    `params` sorts N * D elements; aligned, N * C slots.

    Args:
        params: (P,) float32, float16 or bfloat16; float64 on a CPU. P from Z to 2^31 - 1, shared by
            all features.
        values: (N,) int32 or int64 ids, feature by feature; every id has a row, negative ones too.
        offsets: (F * B + 1,) int32 or int64, from 0 to N; None if every bag has one id.
        width: D.
        chunk_size: Z, from 1; above D it means one chunk.
        seeds: (F, C) int64, 32-bit.
        sign_seeds: (F,) int64, 32-bit; None leaves every sign +1.
        aligned: whether chunks start at multiples of Z. Then Z must divide D and P.
        weights: (N,) floating, what multiplies each row.
        pooling: "sum" or "mean"; the mean divides by the number of ids, weighted or not.

    Raises:
        ValueError: if shapes, types or options do not fit together.

    Source:
        ROBE (Desai, Chou, Shrivastava, MLSys 2022, arXiv 2108.02191), section 3: ROBE-Z, with
        recemb's hash in place of its polynomial one, and circular as the paper says (the authors'
        code stays clear of the end instead). The aligned form is ours.

    Example:
        >>> row = robe_bag(
        ...     torch.arange(8.0),
        ...     torch.tensor([5]),
        ...     width=4,
        ...     chunk_size=2,
        ...     aligned=True,
        ...     seeds=torch.tensor([[1, 2]]),
        ... )
        >>> (row[0, 0, 1::2] - row[0, 0, ::2]).tolist()
        [1.0, 1.0]
    """
    _check(params, values, offsets, width, chunk_size, seeds, sign_seeds, aligned, weights, pooling)
    out: Tensor = torch.ops.recemb.robe_bag(
        params, values, offsets, seeds, sign_seeds, weights, width, min(chunk_size, width), aligned,
        pooling == "mean",
    )  # fmt: skip
    return out


def robe_bag_backward(
    grad: Tensor,
    params: Tensor,
    values: Tensor,
    offsets: Tensor | None = None,
    *,
    width: int,
    chunk_size: int,
    seeds: Tensor,
    sign_seeds: Tensor | None = None,
    aligned: bool = False,
    weights: Tensor | None = None,
    pooling: str = "sum",
) -> RobeGradients:
    """Return the gradients of one lookup for a fused optimizer; the parameters stay as they are.

    Determinism and accumulation are those of `robe_bag`.

    Args:
        grad: (B, F, D) floating, the gradient of the result.
        params: as given to `robe_bag`, as are the others, and not yet updated.
        values: (N,).
        offsets: (F * B + 1,) or None.
        width: D.
        chunk_size: Z.
        seeds: (F, C).
        sign_seeds: (F,) or None.
        aligned: as given to `robe_bag`.
        weights: (N,) or None.
        pooling: "sum" or "mean".

    Raises:
        ValueError: as `robe_bag`, and if `grad` is not (B, F, D).
    """
    _check(params, values, offsets, width, chunk_size, seeds, sign_seeds, aligned, weights, pooling)
    num_features = seeds.shape[0]
    examples = bag_layout.num_bags(values, offsets) // num_features
    if grad.shape != (examples, num_features, width):
        raise ValueError(
            f"robe_bag_backward: grad must be (B, F, D) = {(examples, num_features, width)}, "
            f"got {tuple(grad.shape)}"
        )
    elements, starts, of_weights = torch.ops.recemb.robe_bag_backward(
        grad, params, values, offsets, seeds, sign_seeds, weights, width, min(chunk_size, width),
        aligned, pooling == "mean",
    )  # fmt: skip
    return RobeGradients(elements, starts, None if weights is None else of_weights)


def _check(
    params: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    width: int,
    chunk_size: int,
    seeds: Tensor,
    sign_seeds: Tensor | None,
    aligned: bool,
    weights: Tensor | None,
    pooling: str,
) -> None:
    owner = "robe_bag"
    if width < 1 or chunk_size < 1:
        raise ValueError(
            f"{owner}: width and chunk_size must be at least 1, got {width} and {chunk_size}"
        )
    num_chunks = -(-width // chunk_size)
    if seeds.dim() != 2 or seeds.shape[1] != num_chunks or seeds.dtype != torch.int64:
        raise ValueError(
            f"{owner}: seeds must be (F, C) int64 with C = ceil(width / chunk_size) = "
            f"{num_chunks}, got {tuple(seeds.shape)} {seeds.dtype}"
        )
    if sign_seeds is not None and (
        sign_seeds.shape != seeds.shape[:1] or sign_seeds.dtype != torch.int64
    ):
        raise ValueError(
            f"{owner}: sign_seeds must be (F,) = ({seeds.shape[0]},) int64, "
            f"got {tuple(sign_seeds.shape)} {sign_seeds.dtype}"
        )
    bag_layout.check_bags(owner, values, offsets, weights, seeds.shape[0], pooling)
    if params.dim() != 1 or not params.is_floating_point():
        raise ValueError(
            f"{owner}: params must be (P,) floating, got {tuple(params.shape)} {params.dtype}"
        )
    length, size = min(chunk_size, width), params.shape[0]
    if not length <= size <= MAX_ROWS:
        raise ValueError(
            f"{owner}: params must hold from one chunk, {length}, to {MAX_ROWS} numbers, got {size}"
        )
    if aligned and (width % length or size % length):
        raise ValueError(
            f"{owner}: aligned chunks of {length} must divide the width {width} and the "
            f"{size} params; round params to a multiple, or set aligned=False"
        )


_ARGUMENTS = (
    "Tensor params, Tensor values, Tensor? offsets, Tensor seeds, Tensor? sign_seeds, "
    "Tensor? weights, int width, int chunk_size, bool aligned, bool mean"
)
torch.library.define("recemb::robe_bag", f"({_ARGUMENTS}) -> Tensor")
torch.library.define(
    "recemb::robe_bag_backward", f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
)
torch.library.impl("recemb::robe_bag", "cpu", reference.forward)
torch.library.impl("recemb::robe_bag_backward", "cpu", reference.backward)


@torch.library.impl("recemb::robe_bag", "cuda")
def _forward_cuda(*arguments: Any) -> Tensor:
    from recemb.kernels.robe import kernel

    return kernel.robe_bag_forward(*arguments)


@torch.library.impl("recemb::robe_bag_backward", "cuda")
def _backward_cuda(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from recemb.kernels.robe import kernel

    return kernel.robe_bag_backward(*arguments)


def _forward_fake(
    params: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    seeds: Tensor,
    sign_seeds: Tensor | None,
    weights: Tensor | None,
    width: int,
    *options: Any,
) -> Tensor:
    num_features = seeds.shape[0]
    examples = bag_layout.num_bags(values, offsets) // num_features
    return params.new_empty(examples, num_features, width)


def _backward_fake(
    grad: Tensor,
    params: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    seeds: Tensor,
    sign_seeds: Tensor | None,
    weights: Tensor | None,
    width: int,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, num_ids = bag_layout.accumulator(params.dtype), values.shape[0]
    return (
        params.new_empty(num_ids, width, dtype=dtype),
        values.new_empty(num_ids, seeds.shape[1], dtype=torch.int64),
        params.new_empty(0 if weights is None else num_ids, dtype=dtype),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    params, weights = saved[0], saved[5]
    width, chunk_size, aligned, _ = ctx.options
    elements, starts, of_weights = torch.ops.recemb.robe_bag_backward(grad, *saved, *ctx.options)
    gradients: list[Tensor | None] = [None] * (len(saved) + len(ctx.options))
    if ctx.needs_input_grad[0]:
        length = chunk_size if aligned else 1
        rows = starts // length if aligned else elements_of(starts, width, chunk_size, len(params))
        summed = dense_gradient(
            elements.view(-1, length), rows.view(-1), None, None, len(params) // length
        )
        gradients[0] = summed.view(-1).to(params.dtype)
    if ctx.needs_input_grad[5]:
        gradients[5] = of_weights.to(weights.dtype)
    return tuple(gradients)


torch.library.register_fake("recemb::robe_bag", _forward_fake)
torch.library.register_fake("recemb::robe_bag_backward", _backward_fake)
torch.library.register_autograd("recemb::robe_bag", _differentiate, setup_context=_save)
