"""Batch normalisation of a batch of one."""

import pytest
import torch
from torch import nn

from recemb.models.batch_norm import BatchNorm
from recemb.models.mlp import MLP
from recemb.models.sequence.head import Head


def trained_norm() -> BatchNorm:
    """Return a norm of two batches' statistics."""
    norm = BatchNorm(3)
    for seed in range(2):
        norm(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)) + 2)
    return norm


def test_two_examples_and_more_are_normalised_as_by_torch() -> None:
    ours, torchs = BatchNorm(3), nn.BatchNorm1d(3)
    for num in (2, 7):
        values = torch.randn(num, 3)
        assert torch.equal(ours(values), torchs(values))
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict(), rtol=0, atol=0)


def test_one_example_is_normalised_as_in_evaluation_and_leaves_no_trace() -> None:
    norm = trained_norm()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    values = torch.randn(1, 3, requires_grad=True)
    found = norm(values)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)
    found.sum().backward()
    expected = 1 / torch.sqrt(norm.running_var + norm.eps)
    torch.testing.assert_close(values.grad, expected.unsqueeze(0))
    assert torch.equal(found, norm.eval()(values))


def test_one_example_before_any_batch_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"first training batch has one example.*batch_size"):
        BatchNorm(3)(torch.randn(1, 3))


@pytest.mark.parametrize(
    "network", [MLP(3, (4,), batch_norm=True, out_features=1), Head(3, (4,))], ids=["mlp", "head"]
)
def test_flat_and_sequence_models_train_on_a_last_batch_of_one(network: nn.Module) -> None:
    for num in (6, 1):
        network(torch.randn(num, 3)).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())
