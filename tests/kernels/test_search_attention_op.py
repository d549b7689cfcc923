"""The search's op: gradients, compilation, and the arguments that it refuses."""

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
from tests.kernels.search_cases import NUM_ROWS, by_definition, make, moved


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
