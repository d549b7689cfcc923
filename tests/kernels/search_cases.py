"""Cases of the search, and its definition in float64."""

from typing import Any

import torch
from torch import Tensor

FLOAT32_ROUNDING = 2e-5  # sums of up to some hundred products of order one, added in float32
ROUNDING = {  # of the sums, stored in this type
    torch.float32: FLOAT32_ROUNDING,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
NUM_ROWS = 23


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
