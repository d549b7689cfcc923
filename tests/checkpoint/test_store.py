import json
import warnings
from pathlib import Path

import pytest
import torch

from recemb.checkpoint.store import CheckpointName, CheckpointStore


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def save(store: CheckpointStore, step: int, value: float) -> Path:
    return store.save(CheckpointName("step", step), {"weight": torch.full((3,), value)})


def test_a_saved_state_loads_equal(store: CheckpointStore) -> None:
    state = {"weight": torch.arange(4.0), "nested": {"step": 3, "names": ["a", "b"], "none": None}}
    store.save(CheckpointName("step", 3), state)
    loaded = store.load(CheckpointName("step", 3))
    assert torch.equal(loaded["weight"], state["weight"])
    assert loaded["nested"] == state["nested"]


def test_names_are_ordered_by_step_and_separate_by_kind(store: CheckpointStore) -> None:
    for step in (20, 3, 100):
        save(store, step, 0.0)
    store.save(CheckpointName("best", 7), {})
    assert [n.step for n in store.names("step")] == [3, 20, 100]
    assert [n.step for n in store.names("best")] == [7]


def test_the_newest_is_loaded(store: CheckpointStore) -> None:
    save(store, 1, 1.0)
    save(store, 2, 2.0)
    found = store.load_newest("step")
    assert found is not None
    assert found[0].step == 2
    assert found[1]["weight"].tolist() == [2.0] * 3


def test_an_empty_store_has_no_newest(store: CheckpointStore) -> None:
    assert store.load_newest("step") is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "no manifest", "no state", "bad manifest"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    store: CheckpointStore, damage: str
) -> None:
    save(store, 1, 1.0)
    folder = save(store, 2, 2.0)
    state = folder / "state.pt"
    content = bytearray(state.read_bytes())
    if damage == "truncate":
        state.write_bytes(content[:-10])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "no state":
        state.unlink()
    else:
        (folder / "manifest.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged"):
        found = store.load_newest("step")
    assert found is not None
    assert found[0].step == 1


def test_an_unfinished_checkpoint_is_not_listed_and_is_removed_by_the_next_save(
    store: CheckpointStore,
) -> None:
    save(store, 1, 1.0)
    left_behind = store.folder / ".unfinished-step-0000000002"
    left_behind.mkdir()
    (left_behind / "state.pt").write_bytes(b"half")
    assert [n.step for n in store.names("step")] == [1]
    save(store, 2, 2.0)
    assert not left_behind.exists()


def test_saving_again_replaces(store: CheckpointStore) -> None:
    save(store, 1, 1.0)
    save(store, 1, 5.0)
    assert store.load(CheckpointName("step", 1))["weight"].tolist() == [5.0] * 3
    assert [p.name for p in store.folder.iterdir()] == ["step-0000000001"]


def test_a_newer_format_is_refused(store: CheckpointStore) -> None:
    folder = save(store, 1, 1.0)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["format_version"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="use the version that wrote it"):
        store.load(CheckpointName("step", 1))


class Payload:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


def test_a_pickled_object_is_never_executed(store: CheckpointStore) -> None:
    store.save(CheckpointName("step", 1), {"weight": Payload()})
    with pytest.raises(ValueError, match="was not opened"):
        store.load(CheckpointName("step", 1))


def test_a_removed_checkpoint_is_gone(store: CheckpointStore) -> None:
    save(store, 1, 1.0)
    store.remove(CheckpointName("step", 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.load_newest("step") is None
    assert list(store.folder.iterdir()) == []
