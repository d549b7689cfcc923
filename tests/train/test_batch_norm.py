"""Batch normalisation over ranks: batches that leave little to normalise by."""

import torch

from recemb.models.batch_norm import BatchNorm
from recemb.train.batch_norm import RankBatchNorm
from recemb.train.ranks import Ranks
from tests.processes import on_ranks

LARGE = torch.arange(12.0).view(6, 2) ** 2
ONE = torch.tensor([[3.0, -1.0]])


def normalise() -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Return this rank's share of both batches, normalised, and the statistics after them."""
    rank = Ranks.current().rank
    norm = RankBatchNorm(2)
    found = [norm(LARGE[3 * rank : 3 * rank + 3]), norm(ONE[rank:])]
    return [values.detach() for values in found], dict(norm.state_dict())


def test_one_example_of_all_ranks_is_normalised_as_in_one_process() -> None:
    alone = BatchNorm(2)
    expected = [alone(LARGE).detach(), alone(ONE).detach()]
    (first, state), (second, other) = on_ranks(2, normalise)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), expected[0])
    torch.testing.assert_close(torch.cat([first[1], second[1]]), expected[1])
    torch.testing.assert_close(state, dict(alone.state_dict()))
    torch.testing.assert_close(state, other, rtol=0, atol=0)
