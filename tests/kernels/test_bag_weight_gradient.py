"""The gradient of per-sample weights: against autograd, and the kernel against the reference."""

import pytest
import torch
from torch import Tensor

from recemb.kernels import bag
from recemb.kernels.bag_weight_gradient import bag_weight_gradient, kernel, reference

# A dot product of 6 or 63 products of order one in float32.
FLOAT32 = {"atol": 1e-4, "rtol": 1e-5}
FLOAT64 = {"atol": 1e-12, "rtol": 1e-12}
BATCH = 4
TABLE_ROWS = 25


def mixed_slots(device: str = "cpu") -> Tensor:
    """Four slots on features 0 and 2 of 3; feature 1 is unused."""
    return bag.pack_slots(
        [2, 0, 0, 0],
        [0, 7, 7, 18],
        [7, 11, 11, 7],
        [0, 1, 2**32 - 1, 9],
        [False, True, True, False],
        [True, False, True, True],
        device,
    )


def some_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, 4, (3, BATCH), generator=generator)
    lengths[0, 1] = lengths[2, 0] = 0
    offsets = torch.nn.functional.pad(lengths.flatten().cumsum(0), (1, 0))
    return torch.randint(-3, 9, (int(offsets[-1]),), generator=generator), offsets


@pytest.mark.parametrize("policy", ["ignore", "clamp"])
def test_reference_is_the_derivative_of_the_lookup(policy: str) -> None:
    values, offsets = some_batch()
    weight = torch.randn(TABLE_ROWS, 6, dtype=torch.float64)
    slots = mixed_slots()
    grad = torch.randn(BATCH, 4 * 6, dtype=torch.float64)

    def loss(weights: Tensor) -> Tensor:
        out = bag.bag_forward(
            weight,
            values,
            offsets,
            weights,
            slots,
            batch_size=BATCH,
            policy=policy,
            out_dtype=torch.float64,
        )
        return (out * grad).sum()

    # The lookup is linear in the weights, so one step of any size is exact.
    zeros = torch.zeros(len(values), dtype=torch.float64)
    expected = torch.stack([loss(unit) for unit in torch.eye(len(values), dtype=torch.float64)])
    assert loss(zeros) == 0
    found = reference.bag_weight_gradient(
        weight, values, offsets, slots, grad, batch_size=BATCH, policy=policy
    )
    torch.testing.assert_close(found, expected, **FLOAT64)


@pytest.mark.parametrize("policy", ["trust", "ignore", "clamp"])
def test_kernel_is_the_reference(device: str, policy: str) -> None:
    values, offsets = some_batch()
    if policy == "trust":
        values = values.remainder(7)
    weight, grad = torch.randn(TABLE_ROWS, 6), torch.randn(BATCH, 4 * 6)
    expected = reference.bag_weight_gradient(
        weight.double(), values, offsets, mixed_slots(), grad, batch_size=BATCH, policy=policy
    )
    arguments = [t.to(device) for t in (weight, values, offsets, mixed_slots(), grad)]
    found = kernel.bag_weight_gradient(*arguments, batch_size=BATCH, policy=policy)
    torch.testing.assert_close(found.cpu().double(), expected, **FLOAT32)
    again = kernel.bag_weight_gradient(*arguments, batch_size=BATCH, policy=policy)
    assert torch.equal(found, again)


@pytest.mark.parametrize("width", [1, 63])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernel_of_single_ids_is_the_reference(device: str, width: int, dtype: torch.dtype) -> None:
    values = torch.tensor([0, 6, -1, 7, 1, 1, 1, 1, 3, 3, 9, 0])
    weight = torch.randn(TABLE_ROWS, width).to(dtype)
    grad = torch.randn(BATCH, 4 * width)
    expected = reference.bag_weight_gradient(
        weight.double(), values, None, mixed_slots(), grad, batch_size=BATCH, policy="ignore"
    )
    found = kernel.bag_weight_gradient(
        weight.to(device),
        values.int().to(device),
        None,
        mixed_slots(device),
        grad.to(device),
        batch_size=BATCH,
        policy="ignore",
    )
    torch.testing.assert_close(found.cpu().double(), expected, **FLOAT32)


def test_ids_of_unused_features_get_zero(device: str) -> None:
    slots = bag.pack_slots([1], [0], [3], [0], [False], [False], device)
    found = kernel.bag_weight_gradient(
        torch.ones(3, 2, device=device),
        torch.tensor([0, 1, 2, 2], device=device),
        None,
        slots,
        torch.ones(2, 2, device=device),
        batch_size=2,
    )
    assert found.tolist() == [0.0, 0.0, 2.0, 2.0]


def test_batch_without_any_id_has_no_gradient(device: str) -> None:
    found = kernel.bag_weight_gradient(
        torch.ones(3, 2, device=device),
        torch.zeros(0, dtype=torch.int64, device=device),
        torch.zeros(5, dtype=torch.int64, device=device),
        mixed_slots(device),
        torch.ones(BATCH, 8, device=device),
        batch_size=BATCH,
    )
    assert found.shape == (0,)


def test_gradient_of_another_shape_is_an_error() -> None:
    slots = mixed_slots()
    with pytest.raises(ValueError, match=r"grad must be \(B, S \* D\) = \(4, 8\), got \(4, 2\)"):
        bag_weight_gradient(
            torch.ones(3, 2),
            torch.zeros(12).long(),
            None,
            slots,
            torch.ones(4, 2),
            batch_size=BATCH,
        )


def test_op_passes_opcheck() -> None:
    values, offsets = some_batch()
    weight, grad = torch.randn(TABLE_ROWS, 6), torch.randn(BATCH, 4 * 6)
    op = torch.ops.recemb.bag_weight_gradient.default
    torch.library.opcheck(op, (weight, values, offsets, mixed_slots(), grad, BATCH, "ignore"))
