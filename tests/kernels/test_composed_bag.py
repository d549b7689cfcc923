"""The composed bag: its definition in float64, the kernel, the op, and what they promise."""

from typing import Any

import pytest
import torch
from torch import Tensor

from recemb.kernels.composed_bag import composed_bag, composed_bag_backward, reference
from recemb.kernels.hashing import hash_rows

FLOAT32_ROUNDING = 2e-5  # sums of up to some hundred products of order one, added in float32
ROUNDING = {  # of the result, stored in this type
    torch.float32: FLOAT32_ROUNDING,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}
NUM_IDS = 35
MIXED_RADIX = ([7, 1], [5, 7])  # quotient and remainder by 7 of ids below 35
THREE_DIGITS = ([12, 4, 1], [3, 3, 4])
SEEDS = [3, 0xFFFFFFF1]

OPTIONS: list[dict[str, Any]] = [
    {"radix": MIXED_RADIX, "combine": "product"},
    {"radix": MIXED_RADIX, "combine": "product", "pooling": "mean", "weighted": True},
    {"radix": THREE_DIGITS, "combine": "product", "weighted": True},
    {"radix": THREE_DIGITS, "combine": "sum", "pooling": "mean", "weighted": True},
    {"radix": MIXED_RADIX, "combine": "weighted"},
    {"combine": "weighted", "pooling": "mean", "weighted": True},
    {"combine": "sum"},
    {"combine": "product", "weighted": True},
]
LENGTHS = {"one id": None, "ragged": [2, 0, 1, 5, 1, 3], "all empty": [0, 0, 0, 0]}
NUM_FEATURES = {"one id": 3, "ragged": 2, "all empty": 2}


def make(lengths: str, width: int, **options: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return [weight, values, offsets] in float64 and the keyword arguments of composed_bag."""
    g = torch.Generator().manual_seed(1)
    num_features = NUM_FEATURES[lengths]
    offsets, num_ids = None, 12
    if LENGTHS[lengths] is not None:
        offsets = torch.tensor([0, *LENGTHS[lengths]]).cumsum(0)
        num_ids = int(offsets[-1])
    divisors, sizes = options.get("radix", (None, [6, 4]))
    named: dict[str, Any] = {k: options[k] for k in ("combine", "pooling") if k in options}
    named["num_rows"] = torch.tensor(sizes).repeat(num_features, 1)
    if divisors is None:
        named["seeds"] = torch.tensor(SEEDS) + torch.arange(num_features).unsqueeze(1)
    else:
        named["divisors"] = torch.tensor(divisors).repeat(num_features, 1)
    ends = named["num_rows"].flatten().cumsum(0)
    named["first_rows"] = (ends - named["num_rows"].flatten()).view(num_features, -1)
    weight = torch.randn(int(ends[-1]), width, generator=g, dtype=torch.float64)
    if options["combine"] == "weighted":
        size = (NUM_IDS * num_features, len(sizes))
        named["importance"] = torch.randn(size, generator=g, dtype=torch.float64)
        named["importance_offsets"] = NUM_IDS * torch.arange(num_features + 1)
    if options.get("weighted"):
        named["weights"] = torch.randn(num_ids, generator=g, dtype=torch.float64)
    values = torch.randint(-2, NUM_IDS + 3, (num_ids,), generator=g)
    return [weight, values, offsets], named


def by_definition(weight: Tensor, values: Tensor, offsets: Tensor | None, **named: Any) -> Tensor:
    """Return the composed bag by loops over bags, ids and factors; differentiable by autograd."""
    num_features, width = named["first_rows"].shape[0], weight.shape[1]
    cuts = list(range(len(values) + 1)) if offsets is None else offsets.tolist()
    num_examples = (len(cuts) - 1) // num_features
    bags = []
    for bag in range(len(cuts) - 1):
        total, count = weight.new_zeros(width), 0
        for i in range(cuts[bag], cuts[bag + 1]):
            row = composed_row(weight, int(values[i]), bag // num_examples, **named)
            if row is not None:
                count += 1
                total = total + (row * named["weights"][i] if "weights" in named else row)
        bags.append(total / max(count, 1) if named.get("pooling") == "mean" else total)
    return torch.stack(bags).view(num_features, num_examples, width).transpose(0, 1)


def composed_row(weight: Tensor, x: int, feature: int, **named: Any) -> Tensor | None:
    if "divisors" in named and not 0 <= x < 2**31:
        return None
    if "importance" in named and not 0 <= x < NUM_IDS:
        return None
    rows = []
    for j, first in enumerate(named["first_rows"][feature].tolist()):
        count = int(named["num_rows"][feature, j])
        if "divisors" in named:
            address = x // int(named["divisors"][feature, j]) % count
        else:
            address = int(hash_rows(torch.tensor(x), int(named["seeds"][feature, j]), count))
        row = weight[first + address]
        if "importance" in named:
            row = row * named["importance"][feature * NUM_IDS + x, j]
        rows.append(row)
    stacked = torch.stack(rows)
    return stacked.prod(0) if named["combine"] == "product" else stacked.sum(0)


def truth(tensors: list[Any], named: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the result, the gradient given to it, and the gradients, all float64."""
    weight, values, offsets = tensors
    leaves = {"weight": weight}
    leaves |= {k: named[k] for k in ("importance", "weights") if k in named}
    leaves = {k: v.clone().requires_grad_() for k, v in leaves.items()}
    given = named | {k: v for k, v in leaves.items() if k != "weight"}
    out = by_definition(leaves["weight"], values, offsets, **given)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(9))
    found: Any = (None,) * len(leaves)
    if out.requires_grad:
        found = torch.autograd.grad(out, list(leaves.values()), grad, allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    gradients = {k: torch.zeros_like(v) if g is None else g for (k, v), g in pairs}
    return out.detach(), grad, gradients


def launch(function: Any, tensors: list[Any], named: dict, *before: Tensor, **more: Any) -> Any:
    """Call a launcher, whose arguments are those of the op, by position."""
    names = ("first_rows", "num_rows", "divisors", "seeds", "importance", "importance_offsets")
    return function(
        *before,
        *tensors,
        *(named.get(k) for k in (*names, "weights")),
        named["combine"] == "product",
        named.get("pooling") == "mean",
        **more,
    )


def lowered(tensors: list[Any], named: dict, device: str, dtype: torch.dtype, index: Any) -> Any:
    """Return the arguments as a kernel takes them."""
    weight, values, offsets = tensors
    moved = [weight.to(device, dtype), values.to(device, index)]
    moved.append(None if offsets is None else offsets.to(device, index))
    return moved, {
        k: v.to(device, torch.float32 if v.is_floating_point() else v.dtype)
        if isinstance(v, Tensor)
        else v
        for k, v in named.items()
    }


def summed(grad: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """Return the gradient of a whole table; whatever belongs to no row must be zero."""
    grad, rows = grad.cpu().double().reshape(-1, like.shape[1]), rows.cpu().reshape(-1)
    assert not grad[rows < 0].any()
    return torch.zeros_like(like).index_add_(0, rows[rows >= 0], grad[rows >= 0])


def assert_gradients(found: Any, expected: dict[str, Tensor]) -> None:
    rows, numbers, importance, importance_numbers, weights = found
    close = {"atol": 5 * FLOAT32_ROUNDING, "rtol": 1e-4}
    of_rows = summed(rows, numbers, expected["weight"])
    torch.testing.assert_close(of_rows, expected["weight"], **close)
    if "importance" in expected:
        found = summed(importance, importance_numbers, expected["importance"])
        torch.testing.assert_close(found, expected["importance"], **close)
    if "weights" in expected:
        torch.testing.assert_close(weights.cpu().double(), expected["weights"], **close)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_reference_is_the_definition(options: dict[str, Any], lengths: str) -> None:
    tensors, named = make(lengths, 5, **options)
    out, grad, gradients = truth(tensors, named)
    torch.testing.assert_close(launch(reference.forward, tensors, named), out)
    assert_gradients(launch(reference.backward, tensors, named, grad), gradients)


@pytest.mark.parametrize(
    ("options", "lengths"),
    [(options, "ragged") for options in OPTIONS] + [(o, "one id") for o in OPTIONS[3:6]],
    ids=str,
)
def test_kernel_is_the_definition(options: dict[str, Any], lengths: str, device: str) -> None:
    from recemb.kernels.composed_bag import kernel

    tensors, named = make(lengths, 3 if lengths == "ragged" else 16, **options)
    out, grad, gradients = truth(tensors, named)
    given, moved = lowered(tensors, named, device, torch.float32, torch.int64)
    found = launch(kernel.composed_bag_forward, given, moved)
    torch.testing.assert_close(found.cpu().double(), out, atol=FLOAT32_ROUNDING, rtol=1e-4)
    found = launch(kernel.composed_bag_backward, given, moved, grad.float().to(device))
    assert_gradients(found, gradients)


def test_kernel_takes_bags_that_are_all_empty(device: str) -> None:
    from recemb.kernels.composed_bag import kernel

    tensors, named = make("all empty", 4, **OPTIONS[1])
    given, moved = lowered(tensors, named, device, torch.float32, torch.int64)
    found = launch(kernel.composed_bag_forward, given, moved)
    assert torch.equal(found.cpu(), torch.zeros(2, 2, 4))
    grad = torch.ones(2, 2, 4, device=device)
    assert launch(kernel.composed_bag_backward, given, moved, grad)[0].shape == (0, 2, 4)


@pytest.mark.parametrize("width", [1, 63])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_kernel_reads_every_type_and_width(dtype: torch.dtype, width: int, device: str) -> None:
    from recemb.kernels.composed_bag import kernel

    tensors, named = make("ragged", width, **OPTIONS[1])
    tensors[0] = tensors[0].to(dtype).double()
    out, grad, gradients = truth(tensors, named)
    given, moved = lowered(tensors, named, device, dtype, torch.int32)
    found = launch(kernel.composed_bag_forward, given, moved)
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().double(), out, atol=ROUNDING[dtype], rtol=1e-2)
    found = launch(kernel.composed_bag_backward, given, moved, grad.float().to(device))
    assert_gradients(found, gradients)


def test_result_does_not_depend_on_the_block(device: str) -> None:
    from recemb.kernels.composed_bag import kernel

    tensors, named = make("ragged", 8, **OPTIONS[1])
    given, moved = lowered(tensors, named, device, torch.float32, torch.int64)
    grad = torch.randn(3, 2, 8, device=device)
    first, again = (launch(kernel.composed_bag_forward, given, moved, block_bags=n) for n in (4, 8))
    assert torch.equal(first, again)
    first, again = (
        launch(kernel.composed_bag_backward, given, moved, grad, block_bags=n) for n in (4, 8)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_digits_of_ids_up_to_the_last_one_are_exact(device: str) -> None:
    from recemb.kernels.composed_bag import kernel

    # Float division, as in some released code, is wrong above 2^24.
    divisor, count = 10_007, 2**31 // 10_007 + 1
    ids = torch.tensor([2**24 + 1, 2**31 - 1, 2**31, 2**33 + 5, -1], device=device)
    meta = torch.tensor([[0, 0]], device=device)
    program = [meta, torch.tensor([[count, divisor]], device=device)]
    program += [torch.tensor([[divisor, 1]], device=device), None, None, None, None]
    weight = torch.zeros(count, 1, device=device)
    grad = torch.zeros(5, 1, 1, device=device)
    rows = kernel.composed_bag_backward(grad, weight, ids, None, *program, False, False)[1]
    digits = [list(divmod(int(x), divisor)) for x in ids[:2]]
    assert rows.tolist() == [*digits, [-1, -1], [-1, -1], [-1, -1]]


@pytest.mark.slow  # 4.5 GB, which the interpreter copies
def test_rows_beyond_two_to_the_31_elements_are_read(device: str) -> None:
    from recemb.kernels.composed_bag import kernel

    num_rows = 2**31 // 64 + 3
    weight = torch.zeros(num_rows, 64, dtype=torch.float16, device=device)
    weight[-1], weight[-2] = 1, 2
    ids = torch.tensor([0, 1], device=device)
    two = torch.full((1, 2), 2, device=device)
    named = {"first_rows": num_rows - two, "num_rows": two, "divisors": two - 1}
    named["combine"] = "product"
    found = launch(kernel.composed_bag_forward, [weight, ids, None], named)
    assert found[:, 0, -1].tolist() == [4, 1]


@pytest.mark.parametrize("options", [OPTIONS[1], OPTIONS[5]], ids=str)
def test_op_gives_every_gradient_on_a_device(options: dict[str, Any], device: str) -> None:
    tensors, named = make("ragged", 8, **options)
    out, grad, gradients = truth(tensors, named)
    given, moved = lowered(tensors, named, device, torch.float32, torch.int64)
    leaves = {k: moved[k].requires_grad_() for k in gradients if k != "weight"}
    given[0].requires_grad_()
    found = composed_bag(*given, **moved)
    found.backward(grad.float().to(device))
    close = {"atol": 5 * FLOAT32_ROUNDING, "rtol": 1e-4}
    torch.testing.assert_close(found.cpu().double(), out, **close)
    for name, leaf in {"weight": given[0], **leaves}.items():
        torch.testing.assert_close(leaf.grad.cpu().double(), gradients[name], **close)


def test_quotient_and_remainder_give_every_id_its_own_row() -> None:
    tensors, named = make("one id", 4, **OPTIONS[0])
    one = {k: v[:1] for k, v in named.items() if isinstance(v, Tensor)}
    rows = composed_bag(tensors[0], torch.arange(NUM_IDS), **one)[:, 0]
    assert len(rows.unique(dim=0)) == NUM_IDS


def test_composing_comes_before_pooling() -> None:
    weight = torch.tensor([[1.0], [2.0], [10.0], [100.0]])
    program = {
        "first_rows": torch.tensor([[0, 2]]),
        "num_rows": torch.tensor([[2, 2]]),
        "divisors": torch.tensor([[2, 1]]),
    }
    # Ids 0 and 3: 1 * 10 + 2 * 100; the product of the sums would be 3 * 110.
    found = composed_bag(weight, torch.tensor([0, 3]), torch.tensor([0, 2]), **program)
    assert found.item() == 210.0


def test_product_with_a_zero_factor_has_the_other_factors_as_gradient() -> None:
    weight = torch.tensor([[0.0], [5.0]], requires_grad=True)
    program = {
        "first_rows": torch.tensor([[0, 1]]),
        "num_rows": torch.tensor([[1, 1]]),
        "divisors": torch.tensor([[1, 1]]),
    }
    composed_bag(weight, torch.tensor([0]), **program).sum().backward()
    assert weight.grad.tolist() == [[5.0], [0.0]]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_op_gives_every_gradient(options: dict[str, Any]) -> None:
    tensors, named = make("ragged", 5, **options)
    out, grad, gradients = truth(tensors, named)
    tensors[0] = tensors[0].clone().requires_grad_()
    leaves = {k: named[k].clone().requires_grad_() for k in gradients if k != "weight"}
    found = composed_bag(*tensors, **(named | leaves))
    torch.testing.assert_close(found, out)
    found.backward(grad)
    torch.testing.assert_close(tensors[0].grad, gradients["weight"])
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, gradients[name])


def test_backward_op_agrees_with_autograd_and_leaves_weights_alone() -> None:
    tensors, named = make("ragged", 5, **OPTIONS[5])
    _, grad, gradients = truth(tensors, named)
    before = tensors[0].clone()
    found = composed_bag_backward(grad, *tensors, **named)
    assert torch.equal(tensors[0], before)
    assert_gradients(found, gradients)


@pytest.mark.parametrize("options", [OPTIONS[2], OPTIONS[5]], ids=str)
def test_gradients_pass_gradcheck(options: dict[str, Any]) -> None:
    tensors, named = make("ragged", 2, **options)
    names = [k for k in ("importance", "weights") if k in named]
    leaves = [named.pop(k).requires_grad_() for k in names]

    def function(weight: Tensor, *given: Tensor) -> Tensor:
        return composed_bag(weight, *tensors[1:], **named, **dict(zip(names, given, strict=True)))

    assert torch.autograd.gradcheck(function, (tensors[0].requires_grad_(), *leaves))


@pytest.mark.parametrize("options", [OPTIONS[1], OPTIONS[5]], ids=str)
def test_op_passes_opcheck(options: dict[str, Any]) -> None:
    tensors, named = make("ragged", 4, **options)
    given, moved = lowered(tensors, named, "cpu", torch.float32, torch.int64)

    def check_backward(*arguments: Any) -> None:
        torch.library.opcheck(torch.ops.recemb.composed_bag_backward.default, arguments)

    launch(check_backward, given, moved, torch.randn(3, 2, 4))

    def check(*arguments: Any) -> None:
        torch.library.opcheck(torch.ops.recemb.composed_bag.default, arguments)

    given[0].requires_grad_()
    for name in ("importance", "weights"):
        if name in moved:
            moved[name].requires_grad_()
    launch(check, given, moved)


def test_op_compiles_in_one_graph() -> None:
    tensors, named = make("ragged", 4, **OPTIONS[5])
    weight = tensors[0].requires_grad_()

    def step(weight: Tensor) -> Tensor:
        return composed_bag(weight, *tensors[1:], **named).square().sum()

    (expected,) = torch.autograd.grad(step(weight), weight)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(weight), weight)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"first_rows": torch.zeros(2, dtype=torch.int64)}, r"first_rows must be \(F, K\)"),
        ({"num_rows": torch.ones(1, 2)}, "num_rows must be .* int64"),
        ({"seeds": torch.zeros(1, 2, dtype=torch.int64)}, "divisors or seeds, and not both"),
        ({"divisors": None}, "divisors or seeds"),
        ({"combine": "max"}, "combine must be one of"),
        ({"combine": "weighted"}, "importance goes with"),
        ({"combine": "weighted", "importance": torch.ones(4, 3)}, "importance must be"),
        ({"combine": "weighted", "importance": torch.ones(4, 2)}, "importance_offsets must be"),
    ],
)
def test_programs_that_do_not_fit_are_refused(named: dict[str, Any], message: str) -> None:
    program = dict.fromkeys(("num_rows", "divisors"), torch.ones(1, 2, dtype=torch.int64))
    program |= {"first_rows": torch.zeros(1, 2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=f"composed_bag: .*{message}"):
        composed_bag(torch.zeros(3, 2), torch.arange(4), **(program | named))


def test_backward_refuses_a_gradient_of_another_shape() -> None:
    tensors, named = make("one id", 2, **OPTIONS[0])
    with pytest.raises(ValueError, match=r"grad must be \(B, F, D\) = \(4, 3, 2\)"):
        composed_bag_backward(torch.zeros(4, 2), *tensors, **named)
