"""The code bag: its definition in float64, the kernel, the op, and what they promise."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from recemb.kernels.bag_update import dense_gradient
from recemb.kernels.code_bag import code_bag, pack_codes, reference

FLOAT32_ROUNDING = 2e-5  # sums of up to some hundred products of order one, added in float32
ROUNDING = {  # of the result, stored in this type
    torch.float32: FLOAT32_ROUNDING,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}
LENGTHS = {"one id": None, "ragged": [2, 0, 1, 5, 1, 3], "all empty": [0, 0, 0, 0]}
NUM_ROWS = 9

# bits, parts, centroids, width of a part, and options
CASES: list[dict[str, Any]] = [
    {"bits": 8, "parts": 4, "centroids": 256, "width": 4},
    {"bits": 6, "parts": 3, "centroids": 64, "width": 5, "weighted": True, "mean": True},
    {"bits": 6, "parts": 5, "centroids": 70, "width": 1, "per_feature": True, "mean": True},
    {"bits": 1, "parts": 16, "centroids": 2, "width": 2, "weighted": True},
    {"bits": 5, "parts": 1, "centroids": 20, "width": 63, "per_feature": True, "weighted": True},
    {"bits": 11, "parts": 3, "centroids": 1500, "width": 2, "weighted": True, "mean": True},
]


def make(lengths: str, **case: Any) -> list[Any]:
    """Return the arguments of the op, codebooks and weights in float64."""
    g = torch.Generator().manual_seed(case["bits"] + case["parts"])
    parts, centroids, num_features = case["parts"], case["centroids"], 2
    offsets, num_ids = None, 12
    if LENGTHS[lengths] is not None:
        offsets = torch.tensor([0, *LENGTHS[lengths]]).cumsum(0)
        num_ids = int(offsets[-1])
    used = min(centroids, 2 ** case["bits"])
    codes = torch.randint(used, (NUM_ROWS, parts), generator=g)
    codes[0], codes[1] = 0, used - 1
    sets = [num_features] if case.get("per_feature") else []
    codebooks = torch.randn(
        *sets, parts, centroids, case["width"], generator=g, dtype=torch.float64
    )
    values = torch.randint(-1, NUM_ROWS, (num_ids,), generator=g)
    values[1:3] = -1  # One absent id beside others, and in "ragged" one alone in its bag.
    weights = None
    if case.get("weighted"):
        weights = torch.randn(num_ids, generator=g, dtype=torch.float64)
    packed = pack_codes(codes, case["bits"])
    return [packed, codebooks, values, offsets, weights, case["bits"], num_features,
            case.get("mean", False)]  # fmt: skip


def by_definition(
    codes: Tensor, codebooks: Tensor, values: Tensor, offsets: Tensor | None,
    weights: Tensor | None, bits: int, num_features: int, mean: bool,
) -> Tensor:  # fmt: skip
    """Return the code bag by loops over bags, ids and parts; differentiable by autograd."""
    num_parts, _, part_width = codebooks.shape[-3:]
    cuts = list(range(len(values) + 1)) if offsets is None else offsets.tolist()
    num_examples = (len(cuts) - 1) // num_features
    bags = []
    for bag, (start, stop) in enumerate(itertools.pairwise(cuts)):
        books = codebooks[bag // num_examples] if codebooks.dim() == 4 else codebooks
        total, count = codebooks.new_zeros(num_parts * part_width), 0
        for i in range(start, stop):
            if values[i] < 0:
                continue
            count += 1
            row = int.from_bytes(bytes(codes[values[i]].tolist()), "little")
            found = [books[p, (row >> (p * bits)) % 2**bits] for p in range(num_parts)]
            total = total + torch.cat(found) * (1 if weights is None else weights[i])
        bags.append(total / max(count, 1) if mean else total)
    return torch.stack(bags).view(num_features, num_examples, -1).transpose(0, 1)


def truth(arguments: list[Any]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the result, the gradient given to it, and those of codebooks and weights."""
    given = list(arguments)
    leaves = [1] if given[4] is None else [1, 4]
    for at in leaves:
        given[at] = given[at].clone().requires_grad_()
    out = by_definition(*given)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(9))
    found: Any = [None] * len(leaves)
    if out.requires_grad:
        found = torch.autograd.grad(out, [given[at] for at in leaves], grad, allow_unused=True)
    pairs = zip(leaves, found, strict=True)
    return out.detach(), grad, [torch.zeros_like(given[at]) if g is None else g for at, g in pairs]


def lowered(arguments: list[Any], device: str, dtype: torch.dtype, index: torch.dtype) -> list[Any]:
    """Return the arguments as a kernel takes them."""
    codes, codebooks, values, offsets, weights, *rest = arguments
    return [
        codes.to(device),
        codebooks.to(device, dtype),
        values.to(device, index),
        None if offsets is None else offsets.to(device, index),
        None if weights is None else weights.to(device, torch.float32),
        *rest,
    ]


def assert_gradients(
    found: tuple[Tensor, ...], grad: Tensor, arguments: list[Any], expected: list[Tensor]
) -> None:
    """Check what the backward op returns, summed by the op that its formula calls."""
    entries, sources, scales, grad_weights = found
    codebooks, weights, mean = arguments[1], arguments[4], arguments[7]
    absent = (arguments[2] < 0).cpu()
    assert (entries.cpu()[absent] == -1).all()
    part_width = codebooks.shape[-1]
    summed = dense_gradient(
        grad.contiguous().view(-1, part_width),
        entries.view(-1),
        sources.view(-1),
        None if weights is None and not mean else scales.view(-1),
        codebooks.numel() // part_width,
    )
    close = {"atol": 5 * FLOAT32_ROUNDING, "rtol": 1e-4}
    of_codebooks = summed.view(codebooks.shape).cpu().double()
    torch.testing.assert_close(of_codebooks, expected[0], **close)
    if weights is not None:
        assert not grad_weights.cpu()[absent].any()
        torch.testing.assert_close(grad_weights.cpu().double(), expected[1], **close)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_is_the_definition(case: dict[str, Any], lengths: str) -> None:
    arguments = make(lengths, **case)
    out, grad, gradients = truth(arguments)
    torch.testing.assert_close(reference.forward(*arguments), out)
    assert_gradients(reference.backward(grad, *arguments), grad, arguments, gradients)


@pytest.mark.parametrize(
    ("case", "lengths"),
    [(case, "ragged") for case in CASES] + [(case, "one id") for case in CASES[:3]],
    ids=str,
)
def test_kernel_is_the_definition(case: dict[str, Any], lengths: str, device: str) -> None:
    from recemb.kernels.code_bag import kernel

    arguments = make(lengths, **case)
    out, grad, gradients = truth(arguments)
    given = lowered(arguments, device, torch.float32, torch.int64)
    found = kernel.code_bag_forward(*given)
    torch.testing.assert_close(found.cpu().double(), out, atol=FLOAT32_ROUNDING, rtol=1e-4)
    grad = grad.float().to(device)
    assert_gradients(kernel.code_bag_backward(grad, *given), grad, given, gradients)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_kernel_reads_every_type(dtype: torch.dtype, device: str) -> None:
    from recemb.kernels.code_bag import kernel

    arguments = make("ragged", **CASES[1])
    arguments[1] = arguments[1].to(dtype).double()
    out, grad, gradients = truth(arguments)
    given = lowered(arguments, device, dtype, torch.int32)
    found = kernel.code_bag_forward(*given)
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().double(), out, atol=ROUNDING[dtype], rtol=1e-2)
    grad = grad.float().to(device)
    assert_gradients(kernel.code_bag_backward(grad, *given), grad, given, gradients)


def test_kernel_takes_bags_that_are_all_empty(device: str) -> None:
    from recemb.kernels.code_bag import kernel

    given = lowered(make("all empty", **CASES[1]), device, torch.float32, torch.int64)
    assert torch.equal(kernel.code_bag_forward(*given).cpu(), torch.zeros(2, 2, 15))
    found = kernel.code_bag_backward(torch.ones(2, 2, 15, device=device), *given)
    assert [len(part) for part in found] == [0, 0, 0, 0]


@pytest.mark.parametrize("offsets", [None, torch.tensor([0])])
def test_no_bags_give_an_empty_result(offsets: Tensor | None, device: str) -> None:
    from recemb.kernels.code_bag import kernel

    arguments = make("one id", **CASES[0])
    arguments[2:4] = [torch.zeros(0, dtype=torch.int64), offsets]
    given = lowered(arguments, device, torch.float32, torch.int64)
    assert kernel.code_bag_forward(*given).shape == (0, 2, 16)
    assert reference.forward(*arguments).shape == (0, 2, 16)


def test_table_without_rows_gives_zeros_to_absent_ids(device: str) -> None:
    from recemb.kernels.code_bag import kernel

    arguments = make("one id", **CASES[1])
    arguments[0] = arguments[0][:0]
    arguments[2] = torch.full_like(arguments[2], -1)
    given = lowered(arguments, device, torch.float32, torch.int64)
    assert not kernel.code_bag_forward(*given).any()
    assert not reference.forward(*arguments).any()


def test_nothing_of_an_absent_id_is_seen(device: str) -> None:
    from recemb.kernels.code_bag import kernel

    arguments = make("ragged", **CASES[1])
    out, _, _ = truth(arguments)
    arguments[4][arguments[2] < 0] = float("nan")
    torch.testing.assert_close(reference.forward(*arguments), out)
    found = kernel.code_bag_forward(*lowered(arguments, device, torch.float32, torch.int64))
    torch.testing.assert_close(found.cpu().double(), out, atol=FLOAT32_ROUNDING, rtol=1e-4)


def test_bits_do_not_depend_on_the_block_or_the_run(device: str) -> None:
    from recemb.kernels.code_bag import kernel

    given = lowered(make("ragged", **CASES[1]), device, torch.float32, torch.int64)
    grad = torch.randn(3, 2, 15, device=device)
    first, again, other = (kernel.code_bag_forward(*given, block_bags=n) for n in (4, 4, 8))
    assert torch.equal(first, again)
    assert torch.equal(first, other)
    first, again, other = (kernel.code_bag_backward(grad, *given, block_bags=n) for n in (4, 4, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first[:3], other[:3], strict=True))


@pytest.mark.slow  # 2.2 GB, which the interpreter copies
def test_rows_beyond_two_to_the_31_bytes_are_read(device: str) -> None:
    from recemb.kernels.code_bag import kernel

    num_rows = 2**31 // 64 + 3
    codes = torch.zeros(num_rows, 64, dtype=torch.uint8, device=device)
    codes[-1] = 1
    codebooks = torch.tensor([[[2.0], [3.0]]], device=device).repeat(64, 1, 1)
    ids = torch.tensor([num_rows - 1, num_rows - 2], device=device)
    found = kernel.code_bag_forward(codes, codebooks, ids, None, None, 8, 1, False)
    assert found[:, 0].unique(dim=1).flatten().tolist() == [3.0, 2.0]


@pytest.mark.parametrize("case", [CASES[1], CASES[2]], ids=str)
def test_op_gives_every_gradient_on_a_device(case: dict[str, Any], device: str) -> None:
    arguments = make("ragged", **case)
    out, grad, gradients = truth(arguments)
    given = lowered(arguments, device, torch.float32, torch.int64)
    leaves = [leaf.requires_grad_() for leaf in (given[1], given[4]) if leaf is not None]
    found = torch.ops.recemb.code_bag(*given)
    found.backward(grad.float().to(device))
    close = {"atol": 5 * FLOAT32_ROUNDING, "rtol": 1e-4}
    torch.testing.assert_close(found.detach().cpu().double(), out, **close)
    for leaf, expected in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(leaf.grad.cpu().double(), expected, **close)


def test_kernels_sum_what_the_backward_kernel_writes(device: str) -> None:
    from recemb.kernels.bag_update import launch, plan_update
    from recemb.kernels.code_bag import kernel

    arguments = make("ragged", **CASES[1])
    _, grad, gradients = truth(arguments)
    given = lowered(arguments, device, torch.float32, torch.int64)
    grad = grad.float().to(device)
    entries, sources, scales, _ = kernel.code_bag_backward(grad, *given)
    num_centroids = 3 * 64
    lookups = launch.Lookups(
        grad.contiguous().view(-1, 5),
        *plan_update(entries.view(-1), num_centroids),
        sources.view(-1),
        scales.view(-1),
    )
    found = launch.dense_gradient(lookups, num_centroids).view(3, 64, 5).cpu().double()
    torch.testing.assert_close(found, gradients[0], atol=5 * FLOAT32_ROUNDING, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_op_gives_gradients_of_the_codebooks_type(dtype: torch.dtype) -> None:
    arguments = make("ragged", **CASES[1])
    arguments[1] = arguments[1].to(dtype).double()
    out, grad, gradients = truth(arguments)
    given = lowered(arguments, "cpu", dtype, torch.int64)
    given[1].requires_grad_()
    found = torch.ops.recemb.code_bag(*given)
    found.backward(grad.to(dtype))
    assert given[1].grad.dtype == dtype
    close = {"atol": 2 * ROUNDING[dtype], "rtol": 2e-2}
    torch.testing.assert_close(found.detach().double(), out, **close)
    torch.testing.assert_close(given[1].grad.double(), gradients[0], **close)


def test_gradient_of_a_centroid_that_all_ids_share_is_exact_to_float32() -> None:
    codes = pack_codes(torch.zeros(3, 2, dtype=torch.int64), 8)
    ids = torch.arange(3000) % 3
    codebooks = torch.randn(2, 256, 4, requires_grad=True)
    grad = torch.randn(3000, 1, 8)
    code_bag(codes, codebooks, ids, bits=8).backward(grad)
    expected = torch.zeros(2, 256, 4, dtype=torch.float64)
    expected[:, 0] = grad.double().sum(dim=(0, 1)).view(2, 4)
    torch.testing.assert_close(codebooks.grad.double(), expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("case", [CASES[1], CASES[2]], ids=str)
def test_gradients_pass_gradcheck(case: dict[str, Any]) -> None:
    codes, codebooks, values, offsets, weights, *rest = make("ragged", **case)
    codebooks = codebooks[..., :1].contiguous()

    def function(codebooks: Tensor, weights: Tensor | None) -> Tensor:
        found: Tensor = torch.ops.recemb.code_bag(codes, codebooks, values, offsets, weights, *rest)
        return found

    leaf = None if weights is None else weights.requires_grad_()
    assert torch.autograd.gradcheck(function, (codebooks.requires_grad_(), leaf))


@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=str)
def test_op_passes_opcheck(case: dict[str, Any]) -> None:
    given = lowered(make("ragged", **case), "cpu", torch.float32, torch.int64)
    grad = torch.randn(3, 2, case["parts"] * case["width"])
    torch.library.opcheck(torch.ops.recemb.code_bag_backward.default, (grad, *given))
    for leaf in (given[1], given[4]):
        if leaf is not None:
            leaf.requires_grad_()
    torch.library.opcheck(torch.ops.recemb.code_bag.default, tuple(given))


def test_op_compiles_in_one_graph() -> None:
    codes, codebooks, values, offsets, weights, bits, num_features, _ = make("ragged", **CASES[1])
    codebooks.requires_grad_()

    def step(codebooks: Tensor) -> Tensor:
        named = {"bits": bits, "num_features": num_features, "weights": weights}
        return code_bag(codes, codebooks, values, offsets, **named, pooling="mean").square().sum()

    (expected,) = torch.autograd.grad(step(codebooks), codebooks)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(codebooks), codebooks)
    assert torch.equal(found, expected)


def test_code_beyond_the_codebook_raises_on_a_cpu() -> None:
    codes = pack_codes(torch.tensor([[7]]), 3)
    with pytest.raises(IndexError):
        code_bag(codes, torch.zeros(1, 5, 2), torch.tensor([0]), bits=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"codebooks": torch.zeros(4, 4)}, r"codebooks must be \(P, K, Z\)"),
        ({"codebooks": torch.zeros(4, 4, 2).int()}, "floating"),
        ({"codebooks": torch.zeros(3, 4, 4, 2)}, "one set for each of num_features=1"),
        ({"codebooks": torch.zeros(4, 4, 0)}, "from 1 to"),
        ({"codes": torch.zeros(2, 4, dtype=torch.uint8)}, r"4 codes of 6 bits are rows \(R, 3\)"),
        ({"codes": torch.zeros(2, 3)}, "make them by pack_codes"),
        ({"bits": 17}, "bits must be from 1 to 16"),
        ({"pooling": "max"}, "pooling must be one of"),
        ({"weights": torch.ones(3)}, "one number per id"),
        ({"values": torch.zeros(2)}, "values must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    arguments = {
        "codes": torch.zeros(2, 3, dtype=torch.uint8),
        "codebooks": torch.zeros(4, 64, 2),
        "values": torch.tensor([0, 1]),
        "bits": 6,
    } | given
    with pytest.raises(ValueError, match=f"code_bag: .*{message}"):
        code_bag(**arguments)


def test_kernel_refuses_codebooks_it_cannot_read() -> None:
    from recemb.kernels.code_bag import kernel

    with pytest.raises(ValueError, match="code_bag: the kernel reads"):
        kernel.code_bag_forward(*make("one id", **CASES[0]))
