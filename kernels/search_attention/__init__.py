"""Search in a long history: exact top-k by attention, then a weighted sum of representations.

    s_l = sum over parts of <v_part, WA_part[id_l]>      S = places of the K greatest s_l
    p_l = softmax over S of s_l                          out_part = sum over S of p_l WR_part[id_l]

Shapes: `B` examples, `L` places in a history, `K` selected, `R` rows, `DA`, `DR` widths of a part's
attention and representation tables.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recemb.kernels import bag_layout
from recemb.kernels.bag_update import dense_gradient
from recemb.kernels.search_attention import reference

__all__ = [
    "SearchGradients",
    "SearchPart",
    "SearchResult",
    "search_attention",
    "search_attention_backward",
]


class SearchPart(NamedTuple):
    """One kind of id in a history: item, category or time.

    Attributes:
        attention: (R, DA) float32, float16 or bfloat16; float64 on a CPU. Read for scores alone.
        representation: (R', DR), of the same type in every part. Read for sums alone.
        history: (B, L) int32 or int64, padded behind. An id outside a table reads zeros there, but
            its behaviour takes part: only `lengths` says what is padding.
        target: (B, DA) floating, the target's attention vector, already divided by whatever scales
            this part's score, such as the square root of DA.
    """

    attention: Tensor
    representation: Tensor
    history: Tensor
    target: Tensor


class SearchResult(NamedTuple):
    """What the search found.

    Attributes:
        sums: (B, sum of DR), part by part, in the representations' type.
        positions: (B, K) int64, places in the history in ascending order, then -1.
        probabilities: (B, K) float32 (float64 for float64 tables), 0 where the position is -1.
    """

    sums: Tensor
    positions: Tensor
    probabilities: Tensor


class SearchGradients(NamedTuple):
    """Coefficients of the gradients, in float32 (float64 for float64 tables).

    With `p` the probabilities and `g` the gradient of a part's sums, the gradient of the
    representation row selected at (b, k) is `p[b, k] * g[b]`, and that of the attention row is
    `scores[b, k] * target[b]`; `update_rows` takes both as they are.

    Attributes:
        scores: (B, K) of the selected scores; the others have none.
        targets: of each part's target, (B, DA).
    """

    scores: Tensor
    targets: tuple[Tensor, ...]


def search_attention(parts: Sequence[SearchPart], lengths: Tensor, k: int) -> SearchResult:
    """Return the probabilities and the weighted sum of the K behaviours most like the target.

    An example with fewer than K behaviours selects them all; padding is never selected. One without
    any has zeros.

    DETERMINISM: bit-equal repeats, forward and backward; no atomics. Of equal scores the lower
    position is selected. Scores that differ by rounding may be ranked otherwise by the kernel and
    by the reference, whose sums have another order.
    ACCUMULATION: float32, scores and softmax too.
    SAVED FOR BACKWARD: the arguments, positions and probabilities; nothing of size L or K times a
    width. On a GPU the forward pass has scratch of (B, L) scores.
    GRADIENTS: of both tables of each part (dense: use `search_attention_backward` to train big
    ones) and of the targets, from sums and probabilities. None through the selection itself.

    Args:
        parts: one or more, with histories of one shape.
        lengths: (B,) int32 or int64, behaviours in each history; clamped to [0, L].
        k: K, 1 or more; may exceed L.

    Raises:
        ValueError: if shapes, types or options do not fit together; on a GPU, if L exceeds 8192 and
            8192 * (8192 // K).

    Source:
        DARE (Feng et al., ICLR 2025, arXiv 2410.02604), section on the model: search by attention
        embeddings, softmax over what is selected, sum of representation embeddings. The released
        code selects by a mask over the whole history; the numbers are the same.

    Example:
        >>> table = torch.tensor([[0.0], [1.0], [2.0]])
        >>> part = SearchPart(table, 10 * table, torch.tensor([[1, 2, 0]]), torch.tensor([[9.0]]))
        >>> found = search_attention([part], lengths=torch.tensor([3]), k=1)
        >>> found.positions, found.sums
        (tensor([[1]]), tensor([[20.]]))
    """
    _check(parts, lengths, k)
    sums, positions, probabilities = torch.ops.recemb.search_attention(
        [part.attention for part in parts],
        [part.representation for part in parts],
        [part.history for part in parts],
        [part.target for part in parts],
        lengths,
        k,
    )
    return SearchResult(sums, positions, probabilities)


def search_attention_backward(
    grad: Tensor,
    parts: Sequence[SearchPart],
    result: SearchResult,
    grad_probabilities: Tensor | None = None,
) -> SearchGradients:
    """Return what a fused row-sparse optimizer needs of one search; the tables stay as they are.

    Determinism and accumulation are those of `search_attention`.

    Args:
        grad: (B, sum of DR) floating, the gradient of the sums.
        parts: as given to `search_attention`, and not yet updated.
        result: what `search_attention` returned.
        grad_probabilities: (B, K) floating, the gradient of the probabilities; None for zero.

    Raises:
        ValueError: if a gradient has another shape than what it belongs to.
    """
    if grad_probabilities is None:
        grad_probabilities = torch.zeros_like(result.probabilities)
    for name, given, like in (
        ("grad", grad, result.sums),
        ("grad_probabilities", grad_probabilities, result.probabilities),
    ):
        if given.shape != like.shape:
            raise ValueError(
                f"search_attention_backward: {name} must be {tuple(like.shape)}, "
                f"got {tuple(given.shape)}"
            )
    scores, targets = torch.ops.recemb.search_attention_backward(
        grad,
        grad_probabilities,
        [part.attention for part in parts],
        [part.representation for part in parts],
        [part.history for part in parts],
        result.positions,
        result.probabilities,
    )
    return SearchGradients(scores, targets.split([p.attention.shape[1] for p in parts], dim=1))


def _check(parts: Sequence[SearchPart], lengths: Tensor, k: int) -> None:
    owner = "search_attention"
    if not parts:
        raise ValueError(f"{owner}: there must be one part or more, got none")
    if k < 1:
        raise ValueError(f"{owner}: k must be 1 or more, got {k}")
    shape = parts[0].history.shape
    if len(shape) != 2 or shape[1] < 1:
        raise ValueError(
            f"{owner}: part 0: history must be (B, L) with L of 1 or more, got {tuple(shape)}; "
            "pad empty histories"
        )
    if lengths.shape != shape[:1] or lengths.is_floating_point():
        raise ValueError(
            f"{owner}: lengths must be integers, one per example, {tuple(shape[:1])}, "
            f"got {tuple(lengths.shape)} {lengths.dtype}"
        )
    for number, part in enumerate(parts):
        _check_part(f"{owner}: part {number}", part, shape, parts[0].representation.dtype)


def _check_part(
    owner: str, part: SearchPart, shape: tuple[int, ...], result_dtype: torch.dtype
) -> None:
    for name, table in (("attention", part.attention), ("representation", part.representation)):
        if table.dim() != 2 or not table.is_floating_point():
            raise ValueError(
                f"{owner}: {name} must be (R, D) floating, got {tuple(table.shape)} {table.dtype}"
            )
    if part.representation.dtype != result_dtype:
        raise ValueError(
            f"{owner}: representation must be {result_dtype} as in part 0, "
            f"got {part.representation.dtype}"
        )
    if part.history.shape != shape or part.history.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{owner}: history must be {tuple(shape)} int32 or int64, "
            f"got {tuple(part.history.shape)} {part.history.dtype}"
        )
    expected = (shape[0], part.attention.shape[1])
    if part.target.shape != expected or not part.target.is_floating_point():
        raise ValueError(
            f"{owner}: target must be (B, DA) = {expected} floating, "
            f"got {tuple(part.target.shape)} {part.target.dtype}"
        )


torch.library.define(
    "recemb::search_attention",
    "(Tensor[] attention, Tensor[] representation, Tensor[] histories, Tensor[] targets, "
    "Tensor lengths, int k) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "recemb::search_attention_backward",
    "(Tensor grad, Tensor grad_probabilities, Tensor[] attention, Tensor[] representation, "
    "Tensor[] histories, Tensor positions, Tensor probabilities) -> (Tensor, Tensor)",
)
torch.library.impl("recemb::search_attention", "cpu", reference.forward)
torch.library.impl("recemb::search_attention_backward", "cpu", reference.backward)


@torch.library.impl("recemb::search_attention", "cuda")
def _forward_cuda(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from recemb.kernels.search_attention import kernel

    return kernel.search_attention_forward(*arguments)


@torch.library.impl("recemb::search_attention_backward", "cuda")
def _backward_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    from recemb.kernels.search_attention import kernel

    return kernel.search_attention_backward(*arguments)


def _forward_fake(
    attention: Sequence[Tensor],
    representation: Sequence[Tensor],
    histories: Sequence[Tensor],
    targets: Sequence[Tensor],
    lengths: Tensor,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch = histories[0].shape[0]
    return (
        representation[0].new_empty(batch, sum(table.shape[1] for table in representation)),
        lengths.new_empty(batch, k, dtype=torch.int64),
        lengths.new_empty(batch, k, dtype=_accumulator(attention)),
    )


def _backward_fake(
    grad: Tensor,
    grad_probabilities: Tensor,
    attention: Sequence[Tensor],
    representation: Sequence[Tensor],
    histories: Sequence[Tensor],
    positions: Tensor,
    probabilities: Tensor,
) -> tuple[Tensor, Tensor]:
    width = sum(table.shape[1] for table in attention)
    return (
        torch.empty_like(probabilities),
        grad.new_empty(grad.shape[0], width, dtype=probabilities.dtype),
    )


def _accumulator(tables: Sequence[Tensor]) -> torch.dtype:
    return bag_layout.accumulator(tables[0].dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    attention, representation, histories, targets, _, _ = inputs
    _, positions, probabilities = output
    ctx.num_parts = len(attention)
    ctx.mark_non_differentiable(positions)
    ctx.save_for_backward(
        *attention, *representation, *histories, *targets, positions, probabilities
    )


def _differentiate(
    ctx: Any, grad: Tensor, _: Tensor, grad_probabilities: Tensor
) -> tuple[Any, ...]:
    n = ctx.num_parts
    saved = ctx.saved_tensors
    attention, representation, histories, targets = (
        saved[start : start + n] for start in range(0, 4 * n, n)
    )
    positions, probabilities = saved[4 * n :]
    of_scores, of_targets = torch.ops.recemb.search_attention_backward(
        grad, grad_probabilities, attention, representation, histories, positions, probabilities
    )
    example = torch.arange(grad.shape[0], device=grad.device).unsqueeze(1)
    sources = example.expand_as(positions).reshape(-1)

    def of_tables(tables: Any, vectors: Any, coefficients: Tensor) -> list[Tensor]:
        scales = coefficients.reshape(-1)
        found = []
        for table, history, vector in zip(tables, histories, vectors, strict=True):
            rows = reference.selected_rows(history, positions).reshape(-1)
            dense = vector.to(coefficients.dtype).contiguous()
            summed = dense_gradient(dense, rows, sources, scales, table.shape[0])
            found.append(summed.to(table.dtype))
        return found

    widths_a, widths_r = (
        [table.shape[1] for table in part] for part in (attention, representation)
    )
    by_part = zip(torch.split(of_targets, widths_a, dim=1), targets, strict=True)
    return (
        of_tables(attention, targets, of_scores),
        of_tables(representation, torch.split(grad, widths_r, dim=1), probabilities),
        [None] * n,
        [found.to(target.dtype) for found, target in by_part],
        None,
        None,
    )


torch.library.register_fake("recemb::search_attention", _forward_fake)
torch.library.register_fake("recemb::search_attention_backward", _backward_fake)
torch.library.register_autograd("recemb::search_attention", _differentiate, setup_context=_save)
