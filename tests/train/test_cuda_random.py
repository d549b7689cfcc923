"""CUDA's random states of several ranks, with a stand-in for CUDA's generator.

Where there is no CUDA nothing else can be tested; what torch.cuda does with a state is not.
"""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from recemb.train.cuda_random import cuda_states, set_cuda_states
from recemb.train.ranks import Ranks
from tests.processes import on_ranks

CUDA = torch.device("cuda")


class Generator:
    """Stands in for CUDA's."""

    def __init__(self) -> None:
        self.its = torch.Generator()

    def patched(self) -> Any:
        return mock.patch.multiple(
            torch.cuda,
            get_rng_state=lambda device: self.its.get_state(),
            set_rng_state=lambda state, device: self.its.set_state(state),
            manual_seed_all=self.its.manual_seed,
        )

    def draw(self) -> Tensor:
        return torch.rand(4, generator=self.its)


def saved_and_next(seed: int) -> tuple[dict[str, Any], Tensor]:
    """Return what is saved in the middle of a run, and the numbers that it draws next."""
    generator, ranks = Generator(), Ranks.current()
    generator.its.manual_seed(seed + ranks.rank)
    generator.draw()
    with generator.patched():
        state = cuda_states(ranks, CUDA)
    return state, generator.draw()


def resumed(state: dict[str, Any]) -> Tensor:
    """Return the numbers that a new process draws after it has resumed."""
    generator = Generator()
    with generator.patched():
        set_cuda_states(Ranks.current(), CUDA, state, seed=7)
    return generator.draw()


def test_every_rank_goes_on_with_its_own_numbers() -> None:
    (state, first), (other, second) = on_ranks(2, saved_and_next, 5)
    assert not torch.equal(first, second)
    for name, its in state.items():
        assert torch.equal(its, other[name]), "a checkpoint holds one rank's, the same everywhere"
    found = on_ranks(2, resumed, state)
    assert torch.equal(found[0], first)
    assert torch.equal(found[1], second)


def test_another_number_of_ranks_draws_other_numbers_on_each() -> None:
    (state, first), _ = on_ranks(2, saved_and_next, 5)
    found = on_ranks(3, resumed, state)
    assert torch.equal(found[0], first)
    assert len({tuple(its.tolist()) for its in found}) == 3
    assert torch.equal(resumed(state), first)


def test_a_checkpoint_of_one_tensor_is_taken_up_by_the_first_rank() -> None:
    state, following = saved_and_next(5)
    assert state["random_cuda_ranks"] is None
    old = {"random_cuda": state["random_cuda"]}
    assert torch.equal(resumed(old), following)
    first, second = on_ranks(2, resumed, old)
    assert torch.equal(first, following)
    assert not torch.equal(second, following)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_was_saved_without_cuda_changes_nothing(device: str) -> None:
    nothing = cuda_states(Ranks(), torch.device("cpu"))
    assert nothing == {"random_cuda": None, "random_cuda_ranks": None}
    for state in (nothing, {"random_cuda": None}):
        # The stand-in is not there: any call would fail or tell.
        with mock.patch.multiple(
            torch.cuda, set_rng_state=mock.DEFAULT, manual_seed_all=mock.DEFAULT
        ) as calls:
            set_cuda_states(Ranks(), torch.device(device), state, seed=7)
        assert not any(call.called for call in calls.values())


def test_a_state_of_cuda_is_passed_over_on_the_cpu() -> None:
    state, _ = saved_and_next(5)
    with mock.patch.multiple(
        torch.cuda, set_rng_state=mock.DEFAULT, manual_seed_all=mock.DEFAULT
    ) as calls:
        set_cuda_states(Ranks(), torch.device("cpu"), state, seed=7)
    assert not any(call.called for call in calls.values())
