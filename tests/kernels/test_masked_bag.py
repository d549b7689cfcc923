"""The masked bag: its definition in float64, the kernel, the op, and what they promise."""

from typing import Any

import pytest
import torch
from torch import Tensor

from recemb.kernels.masked_bag import masked_bag, masked_bag_backward, reference, surrogate

FLOAT32_ROUNDING = 2e-5  # sums of up to some hundred products of order one, added in float32
ROUNDING = {  # of the result, stored in this type
    torch.float32: FLOAT32_ROUNDING,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}
NUM_ROWS = 11

OPTIONS: list[dict[str, Any]] = [
    {"thresholds": True},
    {"thresholds": True, "norm": 2, "pooling": "mean"},
    {"lookup_widths": True, "weighted": True},
    {"feature_widths": True, "pooling": "mean", "weighted": True},
    {"thresholds": True, "lookup_widths": True, "pooling": "mean", "weighted": True},
    {"thresholds": True, "feature_widths": True, "norm": 2},
    {"thresholds": True, "lookup_widths": True, "norm_of_prefix": True, "weighted": True},
    {"thresholds": True, "feature_widths": True, "norm_of_prefix": True, "norm": 2},
]
LENGTHS = {
    "one id": None,
    "one bag": [3],
    "ragged": [2, 0, 1, 5, 1, 3],
    "all empty": [0, 0, 0, 0],
}
NUM_FEATURES = {"one id": 3, "one bag": 1, "ragged": 2, "all empty": 2}


class Step(torch.autograd.Function):
    """1 where x > 0; its derivative is OptEmbed's: 2 - 4|x|, 0.4 from 0.4 on, 0 beyond 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        size = x.abs()
        return grad * ((2 - 4 * size) * (size <= 0.4) + 0.4 * ((size > 0.4) & (size <= 1)))


def make(lengths: str, width: int, seed: int = 0, **options: Any) -> tuple[list[Tensor], dict]:
    """Return [weight, values, offsets] in float64 and the keyword arguments of masked_bag."""
    g = torch.Generator().manual_seed(seed)
    num_features = NUM_FEATURES[lengths]
    offsets = None
    num_ids = 12
    if LENGTHS[lengths] is not None:
        offsets = torch.tensor([0, *LENGTHS[lengths]]).cumsum(0)
        num_ids = int(offsets[-1])
    weight = torch.randn(NUM_ROWS, width, generator=g, dtype=torch.float64) / width
    weight[1] = 0
    values = torch.randint(-1, NUM_ROWS + 1, (num_ids,), generator=g)
    named = {k: v for k, v in options.items() if k in ("norm", "pooling", "norm_of_prefix")}
    named["num_features"] = num_features
    if options.get("thresholds"):
        # Halfway between two norms, so that rounding moves no row across.
        norms = torch.linalg.vector_norm(weight, named.get("norm", 1), dim=1).sort().values
        named["thresholds"] = ((norms[3:5].mean() + norms[4:6].mean()) / 2).repeat(num_features)
        named["thresholds"] += 0.01 * torch.arange(num_features)
    if options.get("lookup_widths"):
        named["lookup_widths"] = torch.randint(0, width + 1, (num_ids,), generator=g)
    if options.get("feature_widths"):
        named["feature_widths"] = torch.randint(1, width + 1, (num_features,), generator=g)
    if options.get("weighted"):
        named["weights"] = torch.randn(num_ids, generator=g, dtype=torch.float64)
    return [weight, values, offsets], named


def by_definition(weight: Tensor, values: Tensor, offsets: Tensor | None, **named: Any) -> Tensor:
    """Return the masked bag by loops over bags and ids; differentiable by autograd."""
    num_features, width = named["num_features"], weight.shape[1]
    cuts = list(range(len(values) + 1)) if offsets is None else offsets.tolist()
    num_examples = (len(cuts) - 1) // num_features
    bags = []
    for bag in range(len(cuts) - 1):
        feature, total, count = bag // num_examples, weight.new_zeros(width), 0
        for i in range(cuts[bag], cuts[bag + 1]):
            if not 0 <= values[i] < len(weight):
                continue
            count += 1
            total = total + masked_row(weight[values[i]], i, feature, **named)
        bags.append(total / max(count, 1) if named.get("pooling") == "mean" else total)
    return torch.stack(bags).view(num_features, num_examples, width).transpose(0, 1)


def masked_row(row: Tensor, i: int, feature: int, **named: Any) -> Tensor:
    width, k = len(row), len(row)
    if "lookup_widths" in named:
        k = int(named["lookup_widths"][i])
    if "feature_widths" in named:
        k = int(named["feature_widths"][feature])
    prefix = torch.cat([row[:k], torch.zeros_like(row[k:])])
    out = prefix
    if "thresholds" in named:
        normed = prefix * 1 if named.get("norm_of_prefix") else row
        scale = width / max(k, 1) if named.get("norm_of_prefix") else 1
        if named.get("norm", 1) == 1:
            size = normed.abs().sum()
        else:
            size = normed.square().sum().sqrt() if normed.any() else normed.sum() * 0
        out = out * Step.apply(size * scale - named["thresholds"][feature])
    return out * named["weights"][i] if "weights" in named else out


def truth(tensors: list[Tensor], named: dict) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the result, the gradient given to it, and the gradients, all float64."""
    weight, values, offsets = tensors
    leaves = {"weight": weight}
    leaves |= {k: named[k] for k in ("thresholds", "weights") if k in named}
    leaves = {k: v.clone().requires_grad_() for k, v in leaves.items()}
    given = named | {k: v for k, v in leaves.items() if k != "weight"}
    out = by_definition(leaves["weight"], values, offsets, **given)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(9))
    if out.requires_grad:
        found = torch.autograd.grad(out, list(leaves.values()), grad, allow_unused=True)
    else:
        found = [None] * len(leaves)
    pairs = zip(leaves.items(), found, strict=True)
    gradients = {k: torch.zeros_like(v) if g is None else g for (k, v), g in pairs}
    return out.detach(), grad, gradients


def launch(function: Any, tensors: list[Tensor], named: dict, *before: Tensor, **more: Any) -> Any:
    """Call a launcher, whose arguments are those of the op, by position."""
    masks = ("thresholds", "lookup_widths", "feature_widths", "weights")
    return function(
        *before,
        *tensors,
        *(named.get(k) for k in masks),
        named["num_features"],
        named.get("pooling") == "mean",
        named.get("norm", 1),
        named.get("norm_of_prefix", False),
        **more,
    )


def lowered(tensors: list[Tensor], named: dict, device: str, dtype: torch.dtype, index: Any) -> Any:
    """Return the arguments as a kernel takes them."""
    weight, values, offsets = tensors
    moved = [weight.to(device, dtype), values.to(device, index)]
    moved.append(None if offsets is None else offsets.to(device, index))
    named = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in named.items()}
    return moved, {
        k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in named.items()
    }


def assert_gradients(found: Any, expected: dict[str, Tensor], values: Tensor) -> None:
    rows, thresholds, weights = (t.cpu().double() for t in found)
    present = (values >= 0) & (values < NUM_ROWS)
    summed = torch.zeros_like(expected["weight"])
    summed.index_add_(0, values[present], rows[present])
    torch.testing.assert_close(summed, expected["weight"], atol=FLOAT32_ROUNDING, rtol=1e-4)
    assert not rows[~present].any()
    for name, tensor in (("thresholds", thresholds), ("weights", weights)):
        if name in expected:
            torch.testing.assert_close(tensor, expected[name], atol=FLOAT32_ROUNDING, rtol=1e-4)
        else:
            assert tensor.shape == (0,)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_reference_is_the_definition(options: dict[str, Any], lengths: str) -> None:
    tensors, named = make(lengths, 5, **options)
    out, grad, gradients = truth(tensors, named)
    torch.testing.assert_close(launch(reference.forward, tensors, named), out)
    assert_gradients(launch(reference.backward, tensors, named, grad), gradients, tensors[1])


@pytest.mark.parametrize("lengths", ["one id", "ragged", "all empty"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_kernel_is_the_definition(options: dict[str, Any], lengths: str, device: str) -> None:
    from recemb.kernels.masked_bag import kernel

    width = 3 if lengths == "ragged" else 16
    tensors, named = make(lengths, width, **options)
    out, grad, gradients = truth(tensors, named)
    given, moved = lowered(tensors, named, device, torch.float32, torch.int64)
    found = launch(kernel.masked_bag_forward, given, moved)
    torch.testing.assert_close(found.cpu().double(), out, atol=FLOAT32_ROUNDING, rtol=1e-4)
    found = launch(kernel.masked_bag_backward, given, moved, grad.float().to(device))
    assert_gradients(found, gradients, tensors[1])


@pytest.mark.parametrize("width", [1, 63])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_kernel_reads_every_type_and_width(dtype: torch.dtype, width: int, device: str) -> None:
    from recemb.kernels.masked_bag import kernel

    tensors, named = make("ragged", width, **OPTIONS[4])
    tensors[0] = tensors[0].to(dtype).double()
    out, grad, gradients = truth(tensors, named)
    given, moved = lowered(tensors, named, device, dtype, torch.int32)
    found = launch(kernel.masked_bag_forward, given, moved)
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().double(), out, atol=ROUNDING[dtype], rtol=0)
    found = launch(kernel.masked_bag_backward, given, moved, grad.float().to(device))
    assert_gradients(found, gradients, tensors[1])


def test_result_does_not_depend_on_the_block(device: str) -> None:
    from recemb.kernels.masked_bag import kernel

    tensors, named = make("ragged", 8, **OPTIONS[4])
    given, moved = lowered(tensors, named, device, torch.float32, torch.int64)
    grad = torch.randn(3, 2, 8, device=device)
    one, all_of_them = ({"block_bags": n} for n in (2, 8))
    first = launch(kernel.masked_bag_forward, given, moved, **one)
    assert torch.equal(first, launch(kernel.masked_bag_forward, given, moved, **all_of_them))
    first = launch(kernel.masked_bag_backward, given, moved, grad, **one)
    again = launch(kernel.masked_bag_backward, given, moved, grad, **all_of_them)
    for one_block, other in zip(first, again, strict=True):
        # Sums across a row may take another order in another block.
        torch.testing.assert_close(one_block, other, atol=FLOAT32_ROUNDING, rtol=1e-4)


@pytest.mark.slow  # 4.5 GB, which the interpreter copies
def test_rows_beyond_two_to_the_31_elements_are_read(device: str) -> None:
    from recemb.kernels.masked_bag import kernel

    num_rows = 2**31 // 64 + 3
    weight = torch.zeros(num_rows, 64, dtype=torch.float16, device=device)
    weight[-1], weight[-2] = 1, 2
    ids = torch.tensor([num_rows - 1, 0, num_rows - 2], device=device)
    width = torch.tensor([64], device=device)
    named = {"feature_widths": width, "num_features": 1}
    found = launch(kernel.masked_bag_forward, [weight, ids, None], named)
    assert found[:, 0, -1].tolist() == [1, 0, 2]


def test_table_of_one_row_sums_every_gradient(device: str) -> None:
    weight = torch.full((1, 4), 0.3, device=device, requires_grad=True)
    ids = torch.zeros(50, dtype=torch.int64, device=device)
    thresholds = torch.tensor([0.9], device=device, requires_grad=True)
    masked_bag(weight, ids, thresholds=thresholds).sum().backward()
    # Margin 0.3: slope 2 - 1.2 = 0.8; <g, w> = 1.2; so each id adds 1 + 0.96, and -0.96 to t.
    torch.testing.assert_close(weight.grad, torch.full((1, 4), 50 * 1.96, device=device))
    torch.testing.assert_close(thresholds.grad, torch.tensor([-48.0], device=device))


def test_surrogate_has_the_published_values() -> None:
    x = torch.tensor([-1.2, -1, -0.7, -0.4, -0.2, 0, 0.2, 0.4, 0.7, 1, 1.2], dtype=torch.float64)
    expected = [0, 0.4, 0.4, 0.4, 1.2, 2, 1.2, 0.4, 0.4, 0.4, 0]
    torch.testing.assert_close(surrogate(x), torch.tensor(expected, dtype=torch.float64))


def test_row_on_its_threshold_is_pruned_and_zero_threshold_keeps_all_but_zero_rows() -> None:
    weight = torch.tensor([[0.0, 0.0], [0.25, 0.25]])
    ids = torch.tensor([0, 1])
    pruned = masked_bag(weight, ids, thresholds=torch.tensor([0.5]))
    assert not pruned.any()
    kept = masked_bag(weight, ids, thresholds=torch.tensor([0.0]))
    assert torch.equal(kept[:, 0], weight)


def test_pruned_rows_count_in_a_mean_and_absent_ids_do_not() -> None:
    weight = torch.tensor([[0.1], [6.0]])
    offsets = torch.tensor([0, 3])
    ids = torch.tensor([0, 1, -1])
    named = {"thresholds": torch.tensor([0.5]), "pooling": "mean"}
    assert masked_bag(weight, ids, offsets, **named).item() == 3.0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_op_gives_every_gradient(options: dict[str, Any]) -> None:
    tensors, named = make("ragged", 5, **options)
    out, grad, gradients = truth(tensors, named)
    tensors[0] = tensors[0].clone().requires_grad_()
    leaves = {k: named[k].clone().requires_grad_() for k in gradients if k != "weight"}
    found = masked_bag(*tensors, **(named | leaves))
    torch.testing.assert_close(found, out)
    found.backward(grad)
    torch.testing.assert_close(tensors[0].grad, gradients["weight"])
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, gradients[name])


def test_backward_op_agrees_with_autograd_and_leaves_weights_alone() -> None:
    tensors, named = make("ragged", 5, **OPTIONS[4])
    _, grad, gradients = truth(tensors, named)
    before = tensors[0].clone()
    found = masked_bag_backward(grad, *tensors, **named)
    assert torch.equal(tensors[0], before)
    assert_gradients(found, gradients, tensors[1])


def test_smooth_gradients_pass_gradcheck() -> None:
    tensors, named = make("ragged", 4, **OPTIONS[3])
    leaves = (tensors[0].requires_grad_(), named.pop("weights").requires_grad_())

    def function(weight: Tensor, weights: Tensor) -> Tensor:
        return masked_bag(weight, *tensors[1:], weights=weights, **named)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("options", [OPTIONS[4], OPTIONS[0]], ids=str)
def test_op_passes_opcheck(options: dict[str, Any]) -> None:
    tensors, named = make("ragged", 4, **options)
    tensors[0] = tensors[0].float().requires_grad_()
    for name in ("thresholds", "weights"):
        if name in named:
            named[name] = named[name].float().requires_grad_()

    def check(*arguments: Any) -> None:
        torch.library.opcheck(torch.ops.recemb.masked_bag.default, arguments)

    launch(check, tensors, named)
    grad = torch.randn(3, 2, 4)
    tensors[0] = tensors[0].detach()
    named = {k: v.detach() if isinstance(v, Tensor) else v for k, v in named.items()}

    def check_backward(*arguments: Any) -> None:
        torch.library.opcheck(torch.ops.recemb.masked_bag_backward.default, arguments)

    launch(check_backward, tensors, named, grad)


def test_op_compiles_in_one_graph() -> None:
    tensors, named = make("ragged", 4, **OPTIONS[4])
    weight = tensors[0].requires_grad_()

    def step(weight: Tensor) -> Tensor:
        return masked_bag(weight, *tensors[1:], **named).square().sum()

    (expected,) = torch.autograd.grad(step(weight), weight)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(weight), weight)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({}, "nothing masks"),
        ({"thresholds": torch.zeros(2)}, "thresholds must have one entry per feature"),
        (
            {"lookup_widths": torch.ones(4), "feature_widths": torch.ones(1)},
            "lookup_widths or feature_widths",
        ),
        ({"lookup_widths": torch.ones(3)}, "lookup_widths must have one entry per id"),
        ({"thresholds": torch.zeros(1), "norm": 3}, "norm must be 1 or 2, got 3"),
        ({"thresholds": torch.zeros(1), "norm_of_prefix": True}, "needs both"),
    ],
)
def test_masks_that_do_not_fit_are_refused(named: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"masked_bag: .*{message}"):
        masked_bag(torch.zeros(3, 2), torch.arange(4), **named)


def test_backward_refuses_a_gradient_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"grad must be \(B, F, D\) = \(4, 1, 2\)"):
        masked_bag_backward(
            torch.zeros(4, 2), torch.zeros(3, 2), torch.arange(4), thresholds=torch.zeros(1)
        )
