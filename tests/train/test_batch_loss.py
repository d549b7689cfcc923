"""Which batches the compiled loss computes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from recemb.data.order import Shares
from recemb.train import batch_loss
from recemb.train.batch_loss import BatchLoss
from recemb.train.ranks import Ranks
from recemb.train.settings import TrainerSettings


class Model:
    def loss_sum(self, inputs: Any, labels: Tensor) -> Tensor:
        return labels.sum()


def compiled_sizes(monkeypatch: pytest.MonkeyPatch, ranks: Ranks, **settings: Any) -> set[int]:
    """Return for how many examples the compiled function is called."""
    found = set()

    def compile_as_is(function: Any, **_: Any) -> Any:
        def noted(model: Any, inputs: Any, labels: Tensor) -> Tensor:
            found.add(len(labels))
            return function(model, inputs, labels)

        return noted

    monkeypatch.setattr(batch_loss.torch, "compile", compile_as_is)
    monkeypatch.setattr(Ranks, "current", lambda: ranks)
    loss: Any = BatchLoss(
        Model(),  # type: ignore[arg-type]
        settings=TrainerSettings(**settings),
        device=torch.device("cpu"),
    )
    for size in range(20):
        assert float(loss.of(None, torch.ones(size))) == size
    return found


def test_one_process_compiles_for_a_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled_sizes(monkeypatch, Ranks(), compile=True, batch_size=7) == {7}


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_a_rank_compiles_for_its_share_of_a_whole_batch(
    monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    for rank in range(world_size):
        share = Shares(100, batch_size=7, rank=rank, world_size=world_size, drop_last=False)
        start, stop = share.bounds(3)
        found = compiled_sizes(monkeypatch, Ranks(rank, world_size), compile=True, batch_size=7)
        # Of nothing there is nothing to compile.
        assert found == ({stop - start} - {0})


def test_nothing_is_compiled_unless_the_settings_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled_sizes(monkeypatch, Ranks(), batch_size=7) == set()


def test_histories_of_many_lengths_are_not_compiled_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Sums:
        def loss_sum(self, inputs: Tensor, labels: Tensor) -> Tensor:
            return (inputs.sum(1) * labels).sum()

    counter = CompileCounter()
    compile_whole = torch.compile

    def compile_by_counter(function: Any, **words: Any) -> Any:
        return compile_whole(function, backend=counter, **words)

    monkeypatch.setattr(batch_loss.torch, "compile", compile_by_counter)
    settings = TrainerSettings(compile=True, batch_size=4)
    loss: Any = BatchLoss(Sums(), settings=settings, device=torch.device("cpu"))  # type: ignore[arg-type]
    for length in range(3, 15):
        assert float(loss.of(torch.ones(4, length), torch.ones(4))) == 4 * length
    assert 1 <= counter.frame_count <= 2
