"""Bags of vectors stored as bit-packed codes into codebooks: product quantisation and its kin.

    out[b, f, part p] = pool over i in bag of  a_i * codebooks[p, code_p(i)]

Shapes: `N` ids, `F` features, `B` examples, `R` rows of codes, `P` parts, `K` centroids of a part,
`Z` width of a part, `D` = P * Z, `LB` = ceil(P * bits / 8) bytes of a row of codes.
"""

from typing import Any

import torch
from torch import Tensor

from recemb.kernels import bag_layout
from recemb.kernels.bag_update import dense_gradient
from recemb.kernels.code_bag import reference
from recemb.kernels.code_bag.packing import check_packed, pack_codes, row_bytes, unpack_codes

__all__ = ["code_bag", "pack_codes", "row_bytes", "unpack_codes"]

MAX_CENTROIDS = 2**31 - 1
"""Of all codebooks together: the backward pass sorts their numbers as int32."""


def code_bag(
    codes: Tensor,
    codebooks: Tensor,
    values: Tensor,
    offsets: Tensor | None = None,
    *,
    bits: int,
    num_features: int = 1,
    weights: Tensor | None = None,
    pooling: str = "sum",
) -> Tensor:
    """Return pooled vectors (B, F, D) of the codebooks' type.

    DETERMINISM: bit-equal repeats, forward and backward; no atomics, though every centroid is
    shared by many ids: the backward pass sorts the codes that were read.
    ACCUMULATION: float32, ids in their order.
    SAVED FOR BACKWARD: the arguments, nothing else; codes are read and unpacked again.
    GRADIENTS: of `codebooks`, dense, and of `weights`. Codes have none.

    Args:
        codes: (R, LB) uint8, from `pack_codes`. All tables, in turn.
        codebooks: (P, K, Z) float32, float16 or bfloat16, for all features; or (F, P, K, Z), one
            set per feature. float64 on a CPU. K need not be 2^bits, but codes of K or more must not
            occur: they raise IndexError on a CPU and read foreign memory on a GPU.
        values: (N,) int32 or int64, row numbers in `codes`, feature by feature. Negative ones are
            absent: they add nothing and do not count in a mean. Those of R or more are not checked
            and must not occur either.
        offsets: (F * B + 1,) int32 or int64, from 0 to N; None if every bag has one id.
        bits: of a code, 1 to 16.
        num_features: F.
        weights: (N,) floating, what multiplies each vector.
        pooling: "sum" or "mean"; the mean divides by the number of present ids, weighted or not.

    Raises:
        ValueError: if shapes, types or options do not fit together.

    Source:
        What product-quantised embeddings keep for inference: DPQ (Chen, Li, Sun, ICML 2020, arXiv
        1908.09756); MGQE (Kang et al., WWW 2020, arXiv 2002.08530), whose tail ids have codes of
        fewer bits, here in a table of their own. The layout of the bits is ours.

    Example:
        >>> codebooks = torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]])
        >>> codes = pack_codes(torch.tensor([[0, 1], [1, 0]]), bits=1)
        >>> code_bag(codes, codebooks, torch.tensor([0, 1]), torch.tensor([0, 1, 2]), bits=1)
        tensor([[[ 1., 20.]],
        <BLANKLINE>
                [[ 2., 10.]]])
    """
    _check(codes, codebooks, values, offsets, bits, num_features, weights, pooling)
    out: Tensor = torch.ops.recemb.code_bag(
        codes, codebooks, values, offsets, weights, bits, num_features, pooling == "mean"
    )
    return out


def _check(
    codes: Tensor,
    codebooks: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    bits: int,
    num_features: int,
    weights: Tensor | None,
    pooling: str,
) -> None:
    owner = "code_bag"
    bag_layout.check_bags(owner, values, offsets, weights, num_features, pooling)
    if codebooks.dim() not in (3, 4) or not codebooks.is_floating_point():
        raise ValueError(
            f"{owner}: codebooks must be (P, K, Z) or (F, P, K, Z) floating, "
            f"got {tuple(codebooks.shape)} {codebooks.dtype}"
        )
    if codebooks.dim() == 4 and codebooks.shape[0] != num_features:
        raise ValueError(
            f"{owner}: codebooks (F, P, K, Z) need one set for each of num_features={num_features},"
            f" got {codebooks.shape[0]}; (P, K, Z) is one set for all"
        )
    if not codebooks.numel() or codebooks.numel() // codebooks.shape[-1] > MAX_CENTROIDS:
        raise ValueError(
            f"{owner}: codebooks must have from 1 to {MAX_CENTROIDS} centroids in all, of one "
            f"element or more, got {tuple(codebooks.shape)}"
        )
    check_packed(owner, codes, codebooks.shape[-3], bits)


_ARGUMENTS = (
    "Tensor codes, Tensor codebooks, Tensor values, Tensor? offsets, Tensor? weights, int bits, "
    "int num_features, bool mean"
)
torch.library.define("recemb::code_bag", f"({_ARGUMENTS}) -> Tensor")
# Of each code read: its centroid's number among all (N, P) int32, -1 if the id is absent; the row
# of the gradient (B * F * P, Z) that is the centroid's, (N, P) int64; what multiplies it, (N, P),
# or (0, P) if that is 1. Then the gradient of the weights, (N,), or (0,) without.
torch.library.define(
    "recemb::code_bag_backward", f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
torch.library.impl("recemb::code_bag", "cpu", reference.forward)
torch.library.impl("recemb::code_bag_backward", "cpu", reference.backward)


@torch.library.impl("recemb::code_bag", "cuda")
def _forward_cuda(*arguments: Any) -> Tensor:
    from recemb.kernels.code_bag import kernel

    return kernel.code_bag_forward(*arguments)


@torch.library.impl("recemb::code_bag_backward", "cuda")
def _backward_cuda(*arguments: Any) -> tuple[Tensor, ...]:
    from recemb.kernels.code_bag import kernel

    return kernel.code_bag_backward(*arguments)


def _forward_fake(
    codes: Tensor,
    codebooks: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    bits: int,
    num_features: int,
    mean: bool,
) -> Tensor:
    examples = bag_layout.num_bags(values, offsets) // num_features
    num_parts, _, part_width = codebooks.shape[-3:]
    return codebooks.new_empty(examples, num_features, num_parts * part_width)


def _backward_fake(
    grad: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    bits: int,
    num_features: int,
    mean: bool,
) -> tuple[Tensor, ...]:
    dtype = bag_layout.accumulator(codebooks.dtype)
    num_ids, num_parts = values.shape[0], codebooks.shape[-3]
    num_scaled = 0 if weights is None and not mean else num_ids
    return (
        values.new_empty(num_ids, num_parts, dtype=torch.int32),
        values.new_empty(num_ids, num_parts, dtype=torch.int64),
        codebooks.new_empty(num_scaled, num_parts, dtype=dtype),
        codebooks.new_empty(0 if weights is None else num_ids, dtype=dtype),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    _, codebooks, _, _, weights = ctx.saved_tensors
    *_, mean = ctx.options
    entries, sources, scales, grad_weights = torch.ops.recemb.code_bag_backward(
        grad, *ctx.saved_tensors, *ctx.options
    )
    gradients: list[Tensor | None] = [None] * (len(ctx.saved_tensors) + len(ctx.options))
    if ctx.needs_input_grad[1]:
        part_width = codebooks.shape[-1]
        summed = dense_gradient(
            grad.contiguous().view(-1, part_width),
            entries.view(-1),
            sources.view(-1),
            scales.view(-1) if mean or weights is not None else None,
            codebooks.numel() // part_width,
        )
        gradients[1] = summed.view(codebooks.shape).to(codebooks.dtype)
    if ctx.needs_input_grad[4]:
        gradients[4] = grad_weights.to(weights.dtype)
    return tuple(gradients)


torch.library.register_fake("recemb::code_bag", _forward_fake)
torch.library.register_fake("recemb::code_bag_backward", _backward_fake)
torch.library.register_autograd("recemb::code_bag", _differentiate, setup_context=_save)
