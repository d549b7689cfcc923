"""ROBE: its definition in float64, the kernel, the op, and what they promise."""

from typing import Any

import pytest
import torch
from torch import Tensor

from recemb.kernels.hashing import fmix32, hash_rows
from recemb.kernels.robe import elements_of, reference, robe_bag, robe_bag_backward

FLOAT32_ROUNDING = 2e-5  # sums of up to some hundred products of order one, added in float32
ROUNDING = {  # of the result, stored in this type
    torch.float32: FLOAT32_ROUNDING,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}
NUM_PARAMS = 24  # so few that chunks overlap and go round the end

OPTIONS: list[dict[str, Any]] = [
    {"chunk_size": 4},
    {"chunk_size": 3, "signed": True, "pooling": "mean", "weighted": True},
    {"chunk_size": 1, "signed": True},
    {"chunk_size": 8, "weighted": True},
    {"chunk_size": 4, "aligned": True, "signed": True, "pooling": "mean", "weighted": True},
    {"chunk_size": 8, "aligned": True},
]
WIDTH = 8
LENGTHS = {"one id": None, "ragged": [2, 0, 1, 5, 1, 3], "all empty": [0, 0, 0, 0]}
NUM_FEATURES = {"one id": 3, "ragged": 2, "all empty": 2}
SOME_IDS = [0, 1, -1, 5, 5, 2**33 + 1, -(2**40), 17, 2**31, 5, 1, 2**62]


def make(lengths: str, width: int = WIDTH, **options: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return [params, values, offsets] in float64 and the keyword arguments of robe_bag."""
    g = torch.Generator().manual_seed(1)
    num_features = NUM_FEATURES[lengths]
    offsets, num_ids = None, len(SOME_IDS)
    if LENGTHS[lengths] is not None:
        offsets = torch.tensor([0, *LENGTHS[lengths]]).cumsum(0)
        num_ids = int(offsets[-1])
    named = {k: options[k] for k in ("chunk_size", "pooling", "aligned") if k in options}
    named["width"] = width
    num_chunks = -(-width // named["chunk_size"])
    named["seeds"] = torch.randint(2**32, (num_features, num_chunks), generator=g)
    if options.get("signed"):
        named["sign_seeds"] = torch.randint(2**32, (num_features,), generator=g)
    if options.get("weighted"):
        named["weights"] = torch.randn(num_ids, generator=g, dtype=torch.float64)
    size = NUM_PARAMS if width <= NUM_PARAMS else 96
    params = torch.randn(size, generator=g, dtype=torch.float64)
    return [params, torch.tensor(SOME_IDS[:num_ids]), offsets], named


def by_definition(params: Tensor, values: Tensor, offsets: Tensor | None, **named: Any) -> Tensor:
    """Return the bag by loops over bags, ids and elements; differentiable by autograd."""
    num_features, width = named["seeds"].shape[0], named["width"]
    cuts = list(range(len(values) + 1)) if offsets is None else offsets.tolist()
    num_examples = (len(cuts) - 1) // num_features
    bags = []
    for bag in range(len(cuts) - 1):
        total, count = params.new_zeros(width), cuts[bag + 1] - cuts[bag]
        for i in range(cuts[bag], cuts[bag + 1]):
            row = robe_row(params, values[i], bag // num_examples, **named)
            total = total + (row * named["weights"][i] if "weights" in named else row)
        bags.append(total / max(count, 1) if named.get("pooling") == "mean" else total)
    return torch.stack(bags).view(num_features, num_examples, width).transpose(0, 1)


def robe_row(params: Tensor, x: Tensor, feature: int, **named: Any) -> Tensor:
    size, chunk_size = len(params), named["chunk_size"]
    elements = []
    for d in range(named["width"]):
        seed = int(named["seeds"][feature, d // chunk_size])
        if named.get("aligned"):
            start = int(hash_rows(x, seed, size // chunk_size)) * chunk_size
        else:
            start = int(hash_rows(x, seed, size))
        element = params[(start + d % chunk_size) % size]
        elements.append(-element if is_negative(x, d, feature, **named) else element)
    return torch.stack(elements)


def is_negative(x: Tensor, d: int, feature: int, **named: Any) -> bool:
    if "sign_seeds" not in named:
        return False
    key = int(x) % 2**64
    h = fmix32(torch.tensor(key % 2**32 ^ int(named["sign_seeds"][feature])))
    h = fmix32(h ^ (key >> 32))
    return int(fmix32(h ^ d)) >= 2**31


def truth(tensors: list[Any], named: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the result, the gradient given to it, and the gradients, all float64."""
    params, values, offsets = tensors
    leaves = {"params": params} | {k: named[k] for k in ("weights",) if k in named}
    leaves = {k: v.clone().requires_grad_() for k, v in leaves.items()}
    given = named | {k: v for k, v in leaves.items() if k != "params"}
    out = by_definition(leaves["params"], values, offsets, **given)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(9))
    found: Any = (None,) * len(leaves)
    if out.requires_grad:
        found = torch.autograd.grad(out, list(leaves.values()), grad, allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    gradients = {k: torch.zeros_like(v) if g is None else g for (k, v), g in pairs}
    return out.detach(), grad, gradients


def launch(function: Any, tensors: list[Any], named: dict, *before: Tensor, **more: Any) -> Any:
    """Call a launcher, whose arguments are those of the op, by position."""
    return function(
        *before,
        *tensors,
        named["seeds"],
        named.get("sign_seeds"),
        named.get("weights"),
        named["width"],
        named["chunk_size"],
        named.get("aligned", False),
        named.get("pooling") == "mean",
        **more,
    )


def lowered(tensors: list[Any], named: dict, device: str, dtype: torch.dtype, index: Any) -> Any:
    """Return the arguments as a kernel takes them."""
    params, values, offsets = tensors
    moved = [params.to(device, dtype), values.to(device, index)]
    moved.append(None if offsets is None else offsets.to(device, index))
    return moved, {
        k: v.to(device, torch.float32 if v.is_floating_point() else v.dtype)
        if isinstance(v, Tensor)
        else v
        for k, v in named.items()
    }


def assert_gradients(found: Any, expected: dict[str, Tensor], named: dict[str, Any]) -> None:
    elements, starts, weights = (None if t is None else t.cpu() for t in found)
    size = len(expected["params"])
    at = elements_of(starts, named["width"], named["chunk_size"], size)
    summed = torch.zeros_like(expected["params"])
    summed.index_add_(0, at.flatten(), elements.double().flatten())
    close = {"atol": 5 * FLOAT32_ROUNDING, "rtol": 1e-4}
    torch.testing.assert_close(summed, expected["params"], **close)
    if "weights" in expected:
        torch.testing.assert_close(weights.double(), expected["weights"], **close)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_reference_is_the_definition(options: dict[str, Any], lengths: str) -> None:
    tensors, named = make(lengths, **options)
    out, grad, gradients = truth(tensors, named)
    torch.testing.assert_close(launch(reference.forward, tensors, named), out)
    assert_gradients(launch(reference.backward, tensors, named, grad), gradients, named)


@pytest.mark.parametrize(
    ("options", "lengths"),
    [(options, "ragged") for options in OPTIONS] + [(OPTIONS[1], "one id")],
    ids=str,
)
def test_kernel_is_the_definition(options: dict[str, Any], lengths: str, device: str) -> None:
    from recemb.kernels.robe import kernel

    tensors, named = make(lengths, **options)
    out, grad, gradients = truth(tensors, named)
    given, moved = lowered(tensors, named, device, torch.float32, torch.int64)
    found = launch(kernel.robe_bag_forward, given, moved)
    torch.testing.assert_close(found.cpu().double(), out, atol=FLOAT32_ROUNDING, rtol=1e-4)
    found = launch(kernel.robe_bag_backward, given, moved, grad.float().to(device))
    assert_gradients(found, gradients, named)


def test_kernel_takes_bags_that_are_all_empty(device: str) -> None:
    from recemb.kernels.robe import kernel

    tensors, named = make("all empty", **OPTIONS[1])
    given, moved = lowered(tensors, named, device, torch.float32, torch.int64)
    found = launch(kernel.robe_bag_forward, given, moved)
    assert torch.equal(found.cpu(), torch.zeros(2, 2, WIDTH))


@pytest.mark.parametrize("width", [1, 63])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_kernel_reads_every_type_and_width(dtype: torch.dtype, width: int, device: str) -> None:
    from recemb.kernels.robe import kernel

    options = OPTIONS[1] | {"chunk_size": min(5, width)}
    tensors, named = make("ragged", width, **options)
    tensors[0] = tensors[0].to(dtype).double()
    tensors[1] = torch.tensor([0, 1, -1, 2**31 - 1, -(2**31), 7, 7, 0, 12, 13, 14, 15])
    out, grad, gradients = truth(tensors, named)
    given, moved = lowered(tensors, named, device, dtype, torch.int32)
    found = launch(kernel.robe_bag_forward, given, moved)
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().double(), out, atol=ROUNDING[dtype], rtol=1e-2)
    found = launch(kernel.robe_bag_backward, given, moved, grad.float().to(device))
    assert_gradients(found, gradients, named)


def test_result_does_not_depend_on_the_block(device: str) -> None:
    from recemb.kernels.robe import kernel

    tensors, named = make("ragged", **OPTIONS[0])
    given, moved = lowered(tensors, named, device, torch.float32, torch.int64)
    grad = torch.randn(3, 2, WIDTH, device=device)
    first, again = (launch(kernel.robe_bag_forward, given, moved, block_bags=n) for n in (4, 8))
    assert torch.equal(first, again)
    first, again = (
        launch(kernel.robe_bag_backward, given, moved, grad, block_bags=n)[:2] for n in (4, 8)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_chunks_go_round_the_end_of_the_array() -> None:
    params = torch.arange(5.0)
    found = robe_bag(params, torch.arange(64), width=4, chunk_size=4, seeds=torch.tensor([[3]]))
    steps = found[:, 0].diff(dim=1) % 5
    assert torch.equal(steps, torch.ones(64, 3))
    assert len(found[:, 0, 0].unique()) == 5


def test_aligned_chunks_are_rows_of_the_array() -> None:
    params = torch.arange(24.0)
    seeds = torch.tensor([[3, 4]])
    found = robe_bag(
        params, torch.arange(40), width=8, chunk_size=4, seeds=seeds, aligned=True
    ).view(40, 2, 4)
    rows = hash_rows(torch.arange(40).unsqueeze(1), seeds, 6)
    assert torch.equal(found, params.view(6, 4)[rows])


def test_signs_are_balanced_and_differ_by_element() -> None:
    signs = reference.signs_of(torch.arange(4000), torch.full((4000,), 7), 16).double()
    # Standard deviation of a mean of 4000 signs: 0.0158; five of them.
    assert signs.mean(0).abs().max() < 0.079
    between = signs.T @ signs / 4000 - torch.eye(16)
    assert between.abs().max() < 0.079


def test_chunk_longer_than_the_row_is_one_chunk() -> None:
    params, seeds = torch.randn(30), torch.tensor([[11]])
    named = {"width": 4, "seeds": seeds}
    ids = torch.arange(9)
    assert torch.equal(
        robe_bag(params, ids, chunk_size=32, **named), robe_bag(params, ids, chunk_size=4, **named)
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_op_gives_every_gradient(options: dict[str, Any]) -> None:
    tensors, named = make("ragged", **options)
    out, grad, gradients = truth(tensors, named)
    tensors[0] = tensors[0].clone().requires_grad_()
    leaves = {k: named[k].clone().requires_grad_() for k in gradients if k != "params"}
    found = robe_bag(*tensors, **(named | leaves))
    torch.testing.assert_close(found, out)
    found.backward(grad)
    torch.testing.assert_close(tensors[0].grad, gradients["params"])
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, gradients[name])


@pytest.mark.parametrize("options", [OPTIONS[1], OPTIONS[4]], ids=str)
def test_op_gives_every_gradient_on_a_device(options: dict[str, Any], device: str) -> None:
    tensors, named = make("ragged", **options)
    out, grad, gradients = truth(tensors, named)
    given, moved = lowered(tensors, named, device, torch.float32, torch.int64)
    leaves = {"params": given[0], "weights": moved["weights"]}
    for leaf in leaves.values():
        leaf.requires_grad_()
    found = robe_bag(*given, **moved)
    found.backward(grad.float().to(device))
    close = {"atol": 5 * FLOAT32_ROUNDING, "rtol": 1e-4}
    torch.testing.assert_close(found.cpu().double(), out, **close)
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad.cpu().double(), gradients[name], **close)


def test_backward_op_agrees_with_autograd_and_leaves_parameters_alone() -> None:
    tensors, named = make("ragged", **OPTIONS[1])
    _, grad, gradients = truth(tensors, named)
    before = tensors[0].clone()
    found = robe_bag_backward(grad, *tensors, **named)
    assert torch.equal(tensors[0], before)
    assert_gradients(found, gradients, named)


def test_gradients_pass_gradcheck() -> None:
    tensors, named = make("ragged", 4, **OPTIONS[1])
    leaves = (tensors[0].requires_grad_(), named.pop("weights").requires_grad_())

    def function(params: Tensor, weights: Tensor) -> Tensor:
        return robe_bag(params, *tensors[1:], weights=weights, **named)

    assert torch.autograd.gradcheck(function, leaves)


def test_op_passes_opcheck() -> None:
    tensors, named = make("ragged", **OPTIONS[1])
    given, moved = lowered(tensors, named, "cpu", torch.float32, torch.int64)

    def check_backward(*arguments: Any) -> None:
        torch.library.opcheck(torch.ops.recemb.robe_bag_backward.default, arguments)

    launch(check_backward, given, moved, torch.randn(3, 2, WIDTH))

    def check(*arguments: Any) -> None:
        torch.library.opcheck(torch.ops.recemb.robe_bag.default, arguments)

    given[0].requires_grad_()
    moved["weights"].requires_grad_()
    launch(check, given, moved)


@pytest.mark.parametrize("options", [OPTIONS[1], OPTIONS[4]], ids=str)
def test_op_compiles_in_one_graph(options: dict[str, Any]) -> None:
    tensors, named = make("ragged", **options)
    params = tensors[0].requires_grad_()

    def step(params: Tensor) -> Tensor:
        return robe_bag(params, *tensors[1:], **named).square().sum()

    (expected,) = torch.autograd.grad(step(params), params)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(params), params)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"width": 0}, "width and chunk_size must be at least 1"),
        ({"chunk_size": 2}, "seeds must be .* = 4"),
        ({"sign_seeds": torch.zeros(2, dtype=torch.int64)}, "sign_seeds must be"),
        ({"params": torch.zeros(2, 2)}, r"params must be \(P,\)"),
        ({"params": torch.zeros(3)}, "from one chunk, 4"),
        ({"params": torch.zeros(10), "aligned": True}, "must divide the width 8 and the 10 params"),
        ({"values": torch.arange(4.0)}, "values must be"),
    ],
)
def test_what_does_not_fit_is_refused(named: dict[str, Any], message: str) -> None:
    given = {"params": torch.zeros(12), "values": torch.arange(4), "width": 8, "chunk_size": 4}
    given |= {"seeds": torch.zeros(1, 2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=f"robe_bag: .*{message}"):
        robe_bag(**(given | named))


def test_backward_refuses_a_gradient_of_another_shape() -> None:
    tensors, named = make("one id", **OPTIONS[0])
    with pytest.raises(ValueError, match=r"grad must be \(B, F, D\) = \(4, 3, 8\)"):
        robe_bag_backward(torch.zeros(4, 8), *tensors, **named)
