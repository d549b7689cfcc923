"""Blocks of rows, taken apart."""

import pytest
import torch

from recemb.tables.rows_split import split_rows

SIZES = [2, 0, 3]


def test_pieces_are_those_of_torch() -> None:
    block = torch.arange(20.0).view(5, 4)
    for found, expected in zip(split_rows(block, SIZES), torch.split(block, SIZES), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("read", [(0, 1, 2), (2,), (0,)])
def test_gradients_are_those_of_torch_where_some_are_strided_or_missing(read) -> None:
    gradients = []
    for split in (split_rows, torch.split):
        block = torch.arange(20.0).view(5, 4).requires_grad_()
        pieces = split(block, SIZES)
        # Of the first piece every second column is read: its gradient is strided in one of them.
        loss = sum((n + 1) * pieces[n].t()[::2].square().sum() for n in read)
        loss.backward()
        gradients.append(block.grad)
    assert torch.equal(*gradients)


def test_a_block_that_nothing_is_read_of_has_no_gradient() -> None:
    block = torch.ones(5, 4, requires_grad=True)
    other = torch.ones(1, requires_grad=True)
    pieces = split_rows(block, SIZES)
    (other * sum(p.detach().sum() for p in pieces)).backward()
    assert block.grad is None
