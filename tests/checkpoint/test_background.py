"""Checkpoints written in the background; the thread is held and released by the tests."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from recemb.checkpoint.background import BackgroundCheckpoints
from recemb.checkpoint.store import CheckpointName, CheckpointStore
from recemb.tables.tensor_chunks import Chunk, TensorChunks

SECONDS = 30


class SlowStore(CheckpointStore):
    """A store whose writing waits until it may go on, and fails if it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_go_on = threading.Event()
        self.error: Exception | None = None

    def save(self, name: CheckpointName, state: Mapping[str, Any]) -> None:
        assert self.may_go_on.wait(SECONDS)
        if self.error is not None:
            raise self.error
        super().save(name, state)


@pytest.fixture
def slow(tmp_path: Path) -> SlowStore:
    return SlowStore(tmp_path)


def name(step: int) -> CheckpointName:
    return CheckpointName("step", step)


def test_what_is_written_is_the_state_when_save_was_called(slow: SlowStore) -> None:
    store, weight = BackgroundCheckpoints(slow), torch.ones(3)
    chunk = torch.ones(2)
    state = {
        "weight": weight,
        "rows": TensorChunks((2,), torch.float32, [Chunk((0,), chunk)]),
        "nested": {"steps": [1]},
    }
    store.save(name(1), state)
    weight.fill_(7.0)
    chunk.fill_(7.0)
    state["nested"]["steps"].append(2)
    assert CheckpointStore(slow.folder).names("step") == []
    slow.may_go_on.set()
    loaded = store.load(name(1))
    assert loaded["weight"].tolist() == [1.0, 1.0, 1.0]
    assert loaded["rows"].tolist() == [1.0, 1.0]
    assert loaded["nested"] == {"steps": [1]}


def test_the_second_save_waits_for_the_first(slow: SlowStore) -> None:
    store = BackgroundCheckpoints(slow)
    store.save(name(1), {"weight": torch.ones(3)})
    second = threading.Thread(target=store.save, args=(name(2), {"weight": torch.zeros(3)}))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    slow.may_go_on.set()
    second.join(SECONDS)
    assert store.names("step") == [name(1), name(2)]
    assert [store.load(name(s))["weight"].sum().item() for s in (1, 2)] == [3.0, 0.0]


def test_an_error_surfaces_at_the_next_save_once(slow: SlowStore) -> None:
    store = BackgroundCheckpoints(slow)
    slow.error = OSError("the disk is full")
    slow.may_go_on.set()
    store.save(name(1), {"weight": torch.ones(3)})
    with pytest.raises(OSError, match="the disk is full"):
        store.save(name(2), {"weight": torch.ones(3)})
    slow.error = None
    store.save(name(2), {"weight": torch.ones(3)})
    store.finish()
    assert store.names("step") == [name(2)]


def test_an_error_surfaces_at_the_end(slow: SlowStore) -> None:
    store = BackgroundCheckpoints(slow)
    slow.error = OSError("the disk is full")
    slow.may_go_on.set()
    store.save(name(1), {"weight": torch.ones(3)})
    with pytest.raises(OSError, match="the disk is full"):
        store.finish()
    store.finish()


def test_what_is_superseded_goes_when_the_new_is_there(slow: SlowStore) -> None:
    store = BackgroundCheckpoints(slow)
    slow.may_go_on.set()
    store.save(name(1), {})
    store.finish()
    slow.may_go_on.clear()
    store.save_all([(name(2), {})], superseded=lambda its: its.names("step")[:-1])
    assert CheckpointStore(slow.folder).names("step") == [name(1)]
    slow.may_go_on.set()
    assert store.names("step") == [name(2)]


def test_a_tensor_of_several_states_is_copied_once(tmp_path: Path) -> None:
    store, weight = BackgroundCheckpoints(CheckpointStore(tmp_path)), torch.ones(3)
    best = CheckpointName("best", 1)
    entries = [(best, {"w": weight}), (name(1), {"w": weight, "v": weight + 1})]
    store.save_all(entries, superseded=lambda _: ())
    assert len({its.data_ptr() for its in store._copies.values()}) == 2
    assert store.load(best)["w"].tolist() == store.load(name(1))["w"].tolist() == [1.0] * 3


def test_memory_that_two_states_shared_is_not_shared_by_different_ones(tmp_path: Path) -> None:
    store, weight = BackgroundCheckpoints(CheckpointStore(tmp_path)), torch.ones(3)
    for second in (weight, torch.zeros(3)):
        entries = [(name(1), {"w": weight}), (name(2), {"w": second})]
        store.save_all(entries, superseded=lambda _: ())
    assert store.load(name(1))["w"].tolist() == [1.0] * 3
    assert store.load(name(2))["w"].tolist() == [0.0] * 3


def test_the_copy_s_memory_is_used_again(tmp_path: Path) -> None:
    store = BackgroundCheckpoints(CheckpointStore(tmp_path))
    store.save(name(1), {"w": torch.ones(1000)})
    first = {its.data_ptr() for its in store._copies.values()}
    store.save(name(2), {"w": torch.zeros(1000)})
    assert {its.data_ptr() for its in store._copies.values()} == first
    assert store.load(name(2))["w"].sum() == 0
    assert store.load(name(1))["w"].sum() == 1000
