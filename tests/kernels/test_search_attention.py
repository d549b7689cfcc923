"""The search's kernels: its definition, and what they promise."""

import pytest
import torch

from recemb.kernels.search_attention import reference
from tests.kernels.search_cases import FLOAT32_ROUNDING, assert_found, by_definition, make, moved

LAUNCHES = [(1, True), (1, False), (3, False)]  # parts, in one launch


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
