"""The search: its definition in float64, the kernels, the op, and what they promise."""

from typing import Any

import pytest
import torch
from torch import Tensor

from recemb.kernels.search_attention import (
    SearchPart,
    reference,
    search_attention,
    search_attention_backward,
)

FLOAT32_ROUNDING = 2e-5  # sums of up to some hundred products of order one, added in float32
ROUNDING = {  # of the sums, stored in this type
    torch.float32: FLOAT32_ROUNDING,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
NUM_ROWS = 23
LAUNCHES = [(1, True), (1, False), (3, False)]  # parts, in one launch


def make(
    parts: int = 1,
    size: int = 40,
    lengths: tuple[int, ...] = (0, 3, 40),
    width: int = 4,
    seed: int = 0,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Return the op's arguments but for k, float64; some ids are outside the tables."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    attention = [normal(NUM_ROWS, width + i) / width**0.5 for i in range(parts)]
    representation = [normal(NUM_ROWS + i, width + 2 * i) for i in range(parts)]
    ids = [torch.randint(-1, NUM_ROWS + 4, (len(lengths), size), generator=g) for _ in range(parts)]
    targets = [normal(len(lengths), width + i) for i in range(parts)]
    return attention, representation, ids, targets, torch.tensor(lengths)


def row(table: Tensor, index: Tensor) -> Tensor:
    return table[index] if 0 <= index < len(table) else torch.zeros_like(table[0])


def by_definition(
    attention: list[Tensor],
    representation: list[Tensor],
    histories: list[Tensor],
    targets: list[Tensor],
    lengths: Tensor,
    k: int,
) -> tuple[Tensor, list[list[int]], Tensor]:
    """Return sums, positions and probabilities by loops; differentiable by autograd."""
    sums, positions, probabilities = [], [], []
    for b, length in enumerate(lengths.tolist()):
        scores = [
            sum(
                row(w, h[b, i]) @ v[b]
                for w, h, v in zip(attention, histories, targets, strict=True)
            )
            for i in range(length)
        ]
        ranked = sorted(range(length), key=lambda i: (-float(scores[i].detach()), i))
        chosen = sorted(ranked[:k])
        p = torch.stack([*(scores[i] for i in chosen)]).softmax(0) if chosen else torch.zeros(0)
        total = [
            sum((p[n] * row(w, h[b, i]) for n, i in enumerate(chosen)), torch.zeros_like(w[0]))
            for w, h in zip(representation, histories, strict=True)
        ]
        sums.append(torch.cat(total))
        positions.append(chosen + [-1] * (k - len(chosen)))
        probabilities.append(torch.cat([p.double(), torch.zeros(k - len(chosen)).double()]))
    return torch.stack(sums), positions, torch.stack(probabilities)


def moved(arguments: Any, device: str, dtype: torch.dtype, index: torch.dtype) -> list[Any]:
    """Return the arguments as a kernel takes them."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else index)

    return [[move(t) for t in a] if isinstance(a, list) else move(a) for a in arguments]


def assert_found(found: Any, expected: Any, dtype: torch.dtype = torch.float32) -> None:
    assert found[0].dtype == dtype
    assert found[1].tolist() == (
        expected[1] if isinstance(expected[1], list) else expected[1].tolist()
    )
    close = {"atol": ROUNDING[dtype], "rtol": ROUNDING[dtype]}
    torch.testing.assert_close(found[0].cpu().double(), expected[0], **close)
    close = {"atol": FLOAT32_ROUNDING, "rtol": 1e-4}
    torch.testing.assert_close(found[2].cpu().double(), expected[2], **close)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    ("size", "lengths", "k"),
    [(1, (1, 0), 1), (1, (0, 0), 4), (4, (4, 3, 1), 5), (5, (5, 4), 5), (63, (63, 1, 0, 40), 7)],
)
def test_reference_is_the_definition(
    parts: int, size: int, lengths: tuple[int, ...], k: int
) -> None:
    arguments = make(parts, size, lengths)
    found = reference.forward(*arguments, k)
    expected = by_definition(*arguments, k)
    torch.testing.assert_close(found[0], expected[0])
    assert found[1].tolist() == expected[1]
    torch.testing.assert_close(found[2], expected[2])


@pytest.mark.parametrize(("parts", "is_fused"), LAUNCHES)
@pytest.mark.parametrize(
    ("size", "lengths", "k"),
    [(1, (1, 0), 1), (1, (0, 0), 4), (4, (4, 3), 5), (5, (5, 4), 5), (63, (63, 0), 7)],
)
def test_kernels_are_the_definition(
    parts: int, is_fused: bool, size: int, lengths: tuple[int, ...], k: int, device: str
) -> None:
    from recemb.kernels.search_attention import kernel

    arguments = make(parts, size, lengths, width=3)
    given = moved(arguments, device, torch.float32, torch.int64)
    found = kernel.search_attention_forward(*given, k, is_fused=is_fused)
    assert_found(found, by_definition(*arguments, k))


@pytest.mark.parametrize(
    ("dtype", "index"),
    [
        (torch.float32, torch.int32),
        (torch.float16, torch.int64),
        (torch.bfloat16, torch.int32),
    ],
)
@pytest.mark.parametrize(("parts", "is_fused"), LAUNCHES[:2])
def test_kernels_read_every_type(
    parts: int, is_fused: bool, dtype: torch.dtype, index: torch.dtype, device: str
) -> None:
    from recemb.kernels.search_attention import kernel

    # Rounded first, so that all rank the same numbers.
    arguments = moved(make(parts, 33, (33, 2), width=63), "cpu", dtype, torch.int64)
    arguments = moved(arguments, "cpu", torch.float64, torch.int64)
    given = moved(arguments, device, dtype, index)
    found = kernel.search_attention_forward(*given, 6, is_fused=is_fused)
    assert_found(found, reference.forward(*arguments, 6), dtype)


@pytest.mark.parametrize(("parts", "is_fused"), LAUNCHES)
def test_long_histories_span_several_tiles(parts: int, is_fused: bool, device: str) -> None:
    from recemb.kernels.search_attention import kernel

    arguments = make(parts, 300, (300, 259), width=8)
    given = moved(arguments, device, torch.float32, torch.int64)
    found = kernel.search_attention_forward(*given, 140, is_fused=is_fused)
    assert_found(found, reference.forward(*arguments, 140))


@pytest.mark.parametrize("size", [2049, 5000])
def test_histories_beyond_one_launch_are_searched(size: int, device: str) -> None:
    from recemb.kernels.search_attention import kernel

    arguments = make(1, size, (size,), width=16)
    # Attention rows of one number each: all scores are apart by more than rounding, or equal.
    arguments[0][0][:, 1:] = 0
    given = moved(arguments, device, torch.float32, torch.int64)
    found = kernel.search_attention_forward(*given, 50)
    assert_found(found, reference.forward(*arguments, 50))


@pytest.mark.parametrize("is_fused", [True, False])
def test_ties_go_to_the_lower_position(is_fused: bool, device: str) -> None:
    from recemb.kernels.search_attention import kernel

    # Scores 0, 1, -0.0, 1, -1, .. of a table of small integers are exact.
    table = torch.tensor([[0.0], [1.0], [-0.0], [-1.0]], device=device)
    ids = torch.tensor([[0, 1, 2, 1, 3, 1, 0], [3, 3, 2, 0, 2, 0, 2]], device=device)
    lengths = torch.tensor([7, 7], device=device)
    ones = torch.ones(2, 1, device=device)
    for k, first, second in (
        (2, [1, 3], [2, 3]),
        (4, [0, 1, 3, 5], [2, 3, 4, 5]),
        (6, [0, 1, 2, 3, 5, 6], [0, 2, 3, 4, 5, 6]),
    ):
        given = ([table], [table], [ids], [ones], lengths, k)
        assert reference.forward(*given)[1].tolist() == [first, second]
        found = kernel.search_attention_forward(*given, is_fused=is_fused)
        assert found[1].tolist() == [first, second]


@pytest.mark.parametrize("is_fused", [True, False])
def test_padding_never_gets_in(is_fused: bool, device: str) -> None:
    from recemb.kernels.search_attention import kernel

    # Behaviours score -5, and padding would score 100.
    table = torch.tensor([[100.0], [-5.0]], device=device)
    ids = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]], device=device)
    lengths = torch.tensor([2, 0], device=device)
    given = ([table], [table], [ids], [torch.ones(2, 1, device=device)], lengths, 3)
    found = kernel.search_attention_forward(*given, is_fused=is_fused)
    assert found[0].tolist() == [[-5.0], [0.0]]
    assert found[1].tolist() == [[0, 1, -1], [-1, -1, -1]]
    assert found[2].tolist() == [[0.5, 0.5, 0], [0, 0, 0]]


def test_great_scores_do_not_overflow(device: str) -> None:
    from recemb.kernels.search_attention import kernel

    table = torch.tensor([[1e4], [-1e4]], device=device)
    given = ([table], [table], [torch.tensor([[1, 0, 0]], device=device)])
    lengths = torch.tensor([3], device=device)
    found = kernel.search_attention_forward(*given, [torch.ones(1, 1, device=device)], lengths, 3)
    assert found[2].tolist() == [[0, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("parts", "dtype"), [(1, torch.float32), (3, torch.float32), (1, torch.bfloat16)]
)
def test_backward_kernels_agree_with_the_reference(
    parts: int, dtype: torch.dtype, device: str
) -> None:
    from recemb.kernels.search_attention import kernel

    arguments = moved(make(parts), "cpu", dtype, torch.int64)
    arguments = moved(arguments, "cpu", torch.float64, torch.int64)
    sums, positions, probabilities = reference.forward(*arguments, 5)
    g = torch.Generator().manual_seed(3)
    grads = [torch.randn(t.shape, generator=g).double() for t in (sums, probabilities)]
    expected = reference.backward(*grads, *arguments[:3], positions, probabilities)
    found = kernel.search_attention_backward(
        *(grad.float().to(device) for grad in grads),
        *moved(arguments[:3], device, dtype, torch.int32),
        positions.to(device),
        probabilities.float().to(device),
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, atol=FLOAT32_ROUNDING, rtol=1e-4)


@pytest.mark.parametrize("is_fused", [True, False])
def test_kernels_repeat_bit_for_bit(is_fused: bool, device: str) -> None:
    from recemb.kernels.search_attention import kernel

    given = moved(make(), device, torch.float32, torch.int64)
    first = kernel.search_attention_forward(*given, 5, is_fused=is_fused)
    again = kernel.search_attention_forward(*given, 5, is_fused=is_fused)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    grads = (torch.ones_like(first[0]), torch.ones_like(first[2]))
    first_back = kernel.search_attention_backward(*grads, *given[:3], *first[1:])
    again_back = kernel.search_attention_backward(*grads, *given[:3], *first[1:])
    assert all(torch.equal(a, b) for a, b in zip(first_back, again_back, strict=True))


def test_empty_batch_gives_empty_results(device: str) -> None:
    from recemb.kernels.search_attention import kernel

    given = moved(make(lengths=()), device, torch.float32, torch.int64)
    found = kernel.search_attention_forward(*given, 5)
    assert [tuple(t.shape) for t in found] == [(0, 4), (0, 5), (0, 5)]


@pytest.mark.parametrize("size", [17, 48])
def test_pieces_of_a_history_give_what_the_whole_does(
    size: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recemb.kernels.search_attention import kernel

    monkeypatch.setattr(kernel, "MAX_LENGTH", 16)
    # Small integers: scores are exact, and most of them tie.
    table = torch.arange(-2, 3).double().unsqueeze(1)
    g = torch.Generator().manual_seed(size)
    lengths = torch.tensor([size, size - 1, 16, 2, 0])
    ids = torch.randint(0, 5, (len(lengths), size), generator=g)
    given = ([table], [table], [ids], [torch.ones(len(lengths), 1)], lengths)
    for k in (1, 4):
        found = kernel.search_attention_forward(
            *moved(given, device, torch.float32, torch.int64), k, is_fused=False
        )
        assert_found(found, reference.forward(*given, k))


@pytest.mark.slow
def test_ten_thousand_behaviours_are_searched(device: str) -> None:
    from recemb.kernels.search_attention import kernel

    arguments = make(1, 10_000, (10_000, 9_000, 8_192, 7), width=16)
    # Attention rows of one number each: all scores are apart by more than rounding, or equal.
    arguments[0][0][:, 1:] = 0
    found = kernel.search_attention_forward(
        *moved(arguments, device, torch.float32, torch.int64), 20
    )
    assert_found(found, reference.forward(*arguments, 20))


def test_kernel_refuses_histories_it_cannot_hold() -> None:
    from recemb.kernels.search_attention import kernel

    given = moved(make(1, 3 * 8192 + 1, (1,)), "cpu", torch.float32, torch.int64)
    with pytest.raises(ValueError, match=r"24576 places on a GPU for k = 2100, got 24577; keep"):
        kernel.search_attention_forward(*given, 2100)


def as_parts(arguments: Any, requires_grad: bool = False) -> list[SearchPart]:
    parts = [SearchPart(*tensors) for tensors in zip(*arguments[:4], strict=True)]
    for part in parts:
        for tensor in (part.attention, part.representation, part.target):
            tensor.requires_grad_(requires_grad)
    return parts


@pytest.mark.parametrize("parts", [1, 3])
def test_op_gives_every_gradient(parts: int) -> None:
    arguments = make(parts, 12, (12, 0, 2, 9))
    leaves = [t for group in (0, 1, 3) for t in arguments[group]]
    found = search_attention(as_parts(arguments, True), arguments[4], 5)
    sums, _, probabilities = by_definition(*arguments, 5)
    torch.testing.assert_close(found.sums, sums)
    g = torch.Generator().manual_seed(1)
    grads = [torch.randn(t.shape, generator=g, dtype=t.dtype) for t in (sums, probabilities)]
    expected = torch.autograd.grad((sums, probabilities), leaves, grads)
    ours = torch.autograd.grad((found.sums, found.probabilities), leaves, grads)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_pass_gradcheck() -> None:
    attention, representation, ids, targets, lengths = make(2, 6, (6, 0, 2))
    leaves = [*attention, *representation, *targets]

    def function(*given: Tensor) -> tuple[Tensor, Tensor]:
        parts = [SearchPart(given[i], given[2 + i], ids[i], given[4 + i]) for i in range(2)]
        found = search_attention(parts, lengths, 3)
        return found.sums, found.probabilities

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in leaves])


def test_backward_op_gives_the_coefficients_of_row_gradients() -> None:
    arguments = make(2, 12, (12, 2))
    parts = as_parts(arguments, True)
    found = search_attention(parts, arguments[4], 5)
    grad = torch.ones_like(found.sums)
    expected = torch.autograd.grad(found.sums, [p.attention for p in parts], grad)
    coefficients = search_attention_backward(grad, parts, found)
    for part, theirs in zip(parts, expected, strict=True):
        ours = torch.zeros_like(theirs)
        for b, k in (found.positions >= 0).nonzero().tolist():
            index = part.history[b, found.positions[b, k]]
            if 0 <= index < NUM_ROWS:
                ours[index] += coefficients.scores[b, k] * part.target[b].detach()
        torch.testing.assert_close(ours, theirs)
    assert [t.shape[1] for t in coefficients.targets] == [4, 5]


def test_ops_pass_opcheck() -> None:
    arguments = moved(make(2, 6, (6, 0, 2)), "cpu", torch.float32, torch.int64)
    with torch.no_grad():
        sums, positions, probabilities = reference.forward(*arguments, 3)
    given = (sums, probabilities, *arguments[:3], positions, probabilities)
    torch.library.opcheck(torch.ops.recemb.search_attention_backward.default, given)
    as_parts(arguments, True)
    torch.library.opcheck(torch.ops.recemb.search_attention.default, (*arguments, 3))


def test_op_compiles_in_one_graph() -> None:
    arguments = make(2, 6, (6, 0, 2))
    attention = arguments[0][0].requires_grad_()

    def step(attention: Tensor) -> Tensor:
        parts = as_parts_with(attention, arguments)
        return search_attention(parts, arguments[4], 3).sums.square().sum()

    (expected,) = torch.autograd.grad(step(attention), attention)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(attention), attention)
    assert torch.equal(found, expected)


def as_parts_with(attention: Tensor, arguments: Any) -> list[SearchPart]:
    tables = [attention, *arguments[0][1:]]
    return [SearchPart(*tensors) for tensors in zip(tables, *arguments[1:4], strict=True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": torch.zeros(3)}, r"part 0: attention must be \(R, D\) floating"),
        ({"history": torch.zeros(2, 0, dtype=torch.int64)}, r"with L of 1 or more, got \(2, 0\)"),
        ({"history": torch.zeros(2, 3)}, "int32 or int64"),
        ({"target": torch.zeros(2, 5)}, r"target must be \(B, DA\) = \(2, 4\)"),
        ({"k": 0}, "k must be 1 or more, got 0"),
        ({"lengths": torch.zeros(3, dtype=torch.int64)}, "lengths must be integers, one per"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    lengths = changes.pop("lengths", torch.zeros(2, dtype=torch.int64))
    k = changes.pop("k", 1)
    table = torch.zeros(3, 4)
    part = SearchPart(table, table, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=f"search_attention: .*{message}"):
        search_attention([part._replace(**changes)], lengths, k)


def test_no_part_and_mixed_representations_are_refused() -> None:
    lengths, table = torch.zeros(2, dtype=torch.int64), torch.zeros(3, 4)
    part = SearchPart(table, table, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="one part or more, got none"):
        search_attention([], lengths, 1)
    with pytest.raises(ValueError, match=r"part 1: representation must be torch\.float32"):
        search_attention([part, part._replace(representation=table.half())], lengths, 1)


def test_backward_refuses_a_gradient_of_another_shape() -> None:
    arguments = make()
    parts = as_parts(arguments)
    found = search_attention(parts, arguments[4], 5)
    with pytest.raises(ValueError, match=r"grad must be \(3, 4\), got \(3, 5\)"):
        search_attention_backward(torch.zeros(3, 5), parts, found)
